"""Settings of the inference service."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

MIB = 1024 * 1024


class InferenceSettings(BaseModel):
    """Everything that can be set; times are seconds, sizes bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # --- address
    host: str = Field(
        default="127.0.0.1", min_length=1, description="Address that the service listens on."
    )
    port: int = Field(default=8000, ge=0, le=65_535, description="Port; 0 takes a free one.")

    # --- models
    state_dir: Path = Field(
        default=Path("var/service"),
        description="Directory of the service's own files: admin token, versions in use.",
    )
    repository: Path | None = Field(
        default=None,
        description="Model repository <model>/<version>/; none is the bundled one, read-only.",
    )
    models: tuple[str, ...] = Field(
        default=("demo-lm", "demo-lm-small"),
        min_length=1,
        max_length=8,
        description="Models to serve; the first is the default, the next one its fallback.",
    )
    engine: Literal["onnx", "tensorrt", "tensorrt_rtx", "fake_tensorrt"] = Field(
        default="onnx",
        description="Library that runs the models; fake_tensorrt rehearses TensorRT's failures.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto",
        description="Device of ONNX Runtime; auto is CUDA where onnxruntime was built with it.",
    )
    allow_device_fallback: bool = Field(
        default=True,
        description="Serve on the CPU, and say so, where CUDA was wanted and is not used; "
        "false refuses to load.",
    )
    engine_threads: int = Field(
        default=1, ge=1, le=64, description="Threads inside one engine (ONNX Runtime intra-op)."
    )
    slots: int = Field(
        default=2, ge=1, le=64, description="Key-value cache slots: requests decoded together."
    )
    prefix_cache_bytes: int = Field(
        default=32 * MIB, ge=0, le=4096 * MIB, description="Limit of the prefix cache; 0 is off."
    )
    prefill_tokens_per_step: int = Field(
        default=256,
        ge=1,
        le=65_536,
        description="Most prompt tokens computed between two decode steps; longer prompts are "
        "computed in pieces, so that they do not delay the answers of others.",
    )
    stream_interval_seconds: float = Field(
        default=0.02,
        ge=0,
        le=10,
        description="Least time between two events of a stream after its first one; tokens that "
        "come faster share an event. 0 sends every token by itself.",
    )

    # --- tensor models
    tensor_max_batch_rows: int = Field(
        default=32, ge=1, le=4096, description="Rows of a tensor model computed together at most."
    )
    tensor_max_wait_seconds: float = Field(
        default=0.05,
        ge=0,
        le=10,
        description="Longest wait of a row for others; the real wait follows the measured cost of "
        "the engine and is mostly zero.",
    )
    tensor_queue_seconds: float = Field(
        default=0.15,
        gt=0,
        le=600,
        description="A tensor request that would probably wait longer than this is refused.",
    )
    tensor_max_queue: int = Field(
        default=1024, ge=1, le=1_000_000, description="Tensor requests that may wait for a model."
    )
    tensor_deadline_seconds: float = Field(
        default=1.0, gt=0, le=600, description="End-to-end deadline of tensor requests."
    )
    tensor_max_body_bytes: int = Field(
        default=64 * MIB,
        ge=1024,
        le=1024 * MIB,
        description="Largest request body for a tensor model, else 413.",
    )

    # --- admission
    max_queue: int = Field(
        default=256, ge=1, le=10_000, description="Requests that may wait for a slot of a model."
    )
    requests_per_second: float | None = Field(
        default=None, gt=0, le=1e6, description="Rate limit of user requests; none is no limit."
    )
    sentiment_deadline_seconds: float = Field(
        default=0.8, gt=0, le=600, description="End-to-end deadline of sentiment requests."
    )
    chat_deadline_seconds: float = Field(
        default=1.5, gt=0, le=600, description="End-to-end deadline of all other requests."
    )
    default_max_tokens: int = Field(
        default=64, ge=1, le=4096, description="Length of an answer when a request names none."
    )
    max_output_tokens: int = Field(
        default=128, ge=1, le=4096, description="Longest answer; longer wishes are cut to it."
    )
    max_body_bytes: int = Field(
        default=256 * 1024, ge=1024, le=64 * MIB, description="Largest request body, else 413."
    )
    body_timeout_seconds: float = Field(
        default=10.0, gt=0, le=600, description="A body that takes longer to arrive is a 408."
    )
    body_bytes_per_second: float = Field(
        default=1024.0,
        gt=0,
        le=2**40,
        description="A body that arrives more slowly is a 408, after two seconds of grace.",
    )
    max_body_bytes_in_flight: int = Field(
        default=256 * MIB,
        ge=1024,
        le=2**50,
        description="Bodies of all requests that have no answer yet; above, new ones get 503.",
    )
    max_prompt_characters: int = Field(
        default=8192, ge=1, le=1_000_000, description="Longest prompt text, else 400."
    )

    # --- connections
    max_connections: int = Field(
        default=2048,
        ge=1,
        le=1_000_000,
        description="Open connections; on more, models are refused (429), health still answers.",
    )
    max_connections_per_address: int | None = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="The same for one client address; none is no limit, as behind a proxy.",
    )
    trusted_proxies: tuple[str, ...] = Field(
        default=(),
        description="Addresses or networks whose X-Forwarded-For and -Proto headers are believed.",
    )
    head_timeout_seconds: float = Field(
        default=10.0, gt=0, le=600, description="A request head that takes longer is a 408."
    )
    keep_alive_seconds: int = Field(
        default=75,
        ge=1,
        le=3600,
        description="Idle time after which a connection is closed. Above that of the load balancer "
        "in front, or it will send requests into closing connections.",
    )
    write_timeout_seconds: float = Field(
        default=20.0,
        gt=0,
        le=600,
        description="A client that lets an answer wait for this long is cut off.",
    )
    write_buffer_bytes: int = Field(
        default=64 * 1024,
        ge=0,
        le=64 * MIB,
        description="Part of an answer that may wait in the service for its client, beside what "
        "the kernel holds; more than that, and the client's time to read begins.",
    )
    adaptive_concurrency: bool = Field(
        default=True,
        description="Let fewer than max_queue wait while a standing queue shows an overload.",
    )
    concurrency_tolerance: float = Field(
        default=2.0,
        ge=1.0,
        le=100.0,
        description="Service times that a request may take, waiting included, before the adaptive "
        "limit shrinks.",
    )
    concurrency_patience_seconds: float = Field(
        default=0.3,
        ge=0,
        le=600,
        description="A lasting wait that is no reason to let fewer wait; well below the deadlines.",
    )
    priority_ageing_seconds: float = Field(
        default=0.5,
        ge=0,
        le=3600,
        description="A request that has waited this much longer is equal to one of the next higher "
        "priority.",
    )
    circuit_breaker: bool = Field(
        default=True, description="Give an engine that fails most of the time a pause."
    )
    breaker_window_seconds: float = Field(
        default=10.0, gt=0, le=3600, description="Window in which failures are counted."
    )
    breaker_least_requests: int = Field(
        default=10, ge=1, le=100_000, description="Fewer requests in the window prove nothing."
    )
    breaker_failure_share: float = Field(
        default=0.5, gt=0, le=1, description="Share of failures that opens the circuit breaker."
    )
    breaker_open_seconds: float = Field(
        default=2.0,
        gt=0,
        le=3600,
        description="Pause before a single request probes the engine; each failed probe doubles it, "
        "up to eight times.",
    )
    fallbacks: dict[str, tuple[str, ...]] = Field(
        default_factory=dict,
        description="Models that answer for one that is down, degraded or paused by its circuit "
        "breaker, in order; without an entry the next of `models`, and only where "
        "automatic_fallback or the degradation level asks for it.",
    )

    # --- clients
    api_keys_file: Path | None = Field(
        default=None, description="TOML file of API keys; with one, /v1 and /v2 need a key."
    )
    client_requests_per_second: float | None = Field(
        default=None,
        gt=0,
        le=1e6,
        description="Limit of user requests per remote address, for clients without a key.",
    )

    # --- degradation
    automatic_degradation: bool = Field(
        default=True,
        description="Choose the degradation level by the service's own signals as well; off where an "
        "outside healer decides.",
    )
    degradation_raise_seconds: float = Field(
        default=3.0, gt=0, le=3600, description="Pressure of this length raises the level by one."
    )
    degradation_lower_seconds: float = Field(
        default=15.0, gt=0, le=86_400, description="Calm of this length lowers the level by one."
    )
    degraded_max_tokens: int = Field(
        default=16, ge=1, le=4096, description="Longest answer at degradation level 2 and above."
    )
    degraded_variant: str = Field(
        default="int8",
        max_length=64,
        description="Variant that a model runs as at degradation level 2 and above, where its "
        "model.toml declares one of that name; empty keeps its precision.",
    )
    automatic_fallback: bool = Field(
        default=False,
        description="Answer with the fallback model while the default model's engine is down.",
    )

    # --- health
    canary_interval_seconds: float = Field(
        default=2.0, gt=0, le=3600, description="Time between two golden prompts of a model."
    )
    canary_requests_per_second: float = Field(
        default=5.0, gt=0, le=1000, description="Limit of probes by others (X-Galen-Canary)."
    )
    canary_deadline_seconds: float = Field(
        default=3.0, gt=0, le=600, description="Deadline of a golden prompt."
    )
    canary_capacity_share: float = Field(
        default=0.01,
        gt=0,
        le=1,
        description="Part of the slots' time that golden prompts may take; where they take longer, "
        "they are asked less often.",
    )
    failure_threshold: int = Field(
        default=2,
        ge=1,
        le=100,
        description="Golden prompts in a row that fail before the canary does; a wrong value needs "
        "no second one, and being refused or late under load says nothing.",
    )
    success_threshold: int = Field(
        default=2, ge=1, le=100, description="Right ones in a row before it is fine again."
    )
    health_interval_seconds: float = Field(
        default=0.25, gt=0, le=60, description="Time between two looks for the history of health."
    )
    stall_seconds: float = Field(
        default=2.0,
        gt=0,
        le=600,
        description="Pending work without a finished step for this long makes the context layer "
        "fail and the state `stalled`; nothing is restarted yet.",
    )

    # --- releases
    probation_seconds: float = Field(
        default=120.0,
        ge=0,
        le=86_400,
        description="A version that was swapped in is watched for this long, and goes back by itself "
        "if it is worse than the one before; 0 is off.",
    )
    probation_minimum_requests: int = Field(
        default=20, ge=10, le=100_000, description="Requests of a version before it is judged."
    )
    probation_latency_ratio: float = Field(
        default=1.25,
        ge=1,
        le=100,
        description="How much slower per token, or per call, a new version may be.",
    )
    probation_false_alarm_share: float = Field(
        default=0.01,
        gt=0,
        le=0.5,
        description="Share of equally good versions that may be rolled back by mistake.",
    )
    max_loaded_models: int = Field(
        default=8,
        ge=1,
        le=64,
        description="Models that may be loaded together, those loaded at run time included.",
    )

    peers: tuple[str, ...] = Field(
        default=(),
        max_length=16,
        description="Base URLs of other replicas, whose answers to golden prompts are compared "
        "with this one's; none is off.",
    )
    peer_interval_seconds: float = Field(
        default=60.0, gt=0, le=86_400, description="Time between two comparisons with the peers."
    )
    peer_timeout_seconds: float = Field(
        default=5.0, gt=0, le=600, description="A peer that takes longer has no vote."
    )

    # --- supervision
    progress_budget_seconds: float = Field(
        default=15.0,
        gt=0,
        le=3600,
        description="Pending work without a finished step for this long means a hang: the worker "
        "is restarted. Above the stall limit, so that an outside healer can act first.",
    )
    load_budget_seconds: float = Field(
        default=60.0, gt=0, le=7200, description="A load that takes longer is a hang."
    )
    memory_limit_bytes: int = Field(
        default=1024 * MIB,
        ge=64 * MIB,
        le=2**50,
        description="Resident memory of a worker above which it is restarted.",
    )
    terminate_grace_seconds: float = Field(
        default=1.0, gt=0, le=600, description="Time between SIGTERM and SIGKILL."
    )
    restart_budget: int = Field(
        default=8, ge=1, le=1000, description="Unplanned restarts allowed inside the window."
    )
    restart_window_seconds: float = Field(
        default=300.0, gt=0, le=86_400, description="Window of the restart budget."
    )
    load_attempts: int = Field(
        default=3, ge=1, le=100, description="Loads in a row that may fail before giving up."
    )
    backoff_initial_seconds: float = Field(
        default=0.1, ge=0, le=600, description="Wait before the first unplanned restart."
    )
    backoff_limit_seconds: float = Field(
        default=10.0, ge=0, le=3600, description="Longest wait; each restart in a row doubles it."
    )
    stable_seconds: float = Field(
        default=30.0, gt=0, le=86_400, description="Uptime after which the backoff starts anew."
    )
    supervisor_interval_seconds: float = Field(
        default=0.25, gt=0, le=60, description="Time between two looks at a worker."
    )

    # --- poison requests
    sandbox: bool = Field(
        default=True,
        description="Try requests that were there when a worker went down in a worker outside the "
        "serving path, to quarantine the culprit. Takes the memory of a second copy meanwhile.",
    )
    sandbox_trials: int = Field(
        default=48, ge=2, le=10_000, description="Most trials for one crash or hang."
    )
    sandbox_seconds: float = Field(
        default=120.0, gt=0, le=86_400, description="Longest time for one crash or hang."
    )
    suspicion_seconds: float = Field(
        default=120.0,
        gt=0,
        le=86_400,
        description="Suspects that are neither cleared nor quarantined are refused for this long.",
    )
    quarantine_seconds: float = Field(
        default=86_400.0, gt=0, le=31_536_000, description="Time in quarantine."
    )
    quarantine_entries: int = Field(
        default=1024,
        ge=1,
        le=100_000,
        description="Requests in quarantine; those that were not sent for the longest time leave.",
    )

    # --- traces, logs
    trace_endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://",
        description="URL that takes spans by OTLP over HTTP, such as http://collector:4318/v1/traces; "
        "none leaves it to OTEL_EXPORTER_OTLP_ENDPOINT, and without that there are no traces.",
    )
    trace_sample_ratio: float | None = Field(
        default=None,
        ge=0.0,
        le=1.0,
        description="Share of requests traced, of those whose client did not decide; none leaves it "
        "to OTEL_TRACES_SAMPLER, and without that all are.",
    )
    trace_prompts: bool = Field(
        default=False, description="Put prompts and answers into spans. They may be personal data."
    )

    # --- audit
    audit_access: bool = Field(
        default=False,
        description="Write who asked which model into state_dir/audit.jsonl; calls of "
        "administration are always written.",
    )
    audit_prompts: bool = Field(
        default=False,
        description="Write prompts and answers there too. They may be personal data.",
    )
    audit_max_bytes: int = Field(
        default=16 * MIB, ge=4096, le=2**40, description="Size at which a new audit file begins."
    )
    audit_files: int = Field(
        default=5, ge=1, le=1000, description="Audit files kept, the one being written included."
    )

    # --- administration
    admin_token: SecretStr | None = Field(
        default=None,
        description="Bearer token of /admin; none is generated into state_dir/admin_token (0600).",
    )
    allow_faults: bool = Field(
        default=False, description="Accept fault injection through /admin/faults. Drills only."
    )
    drain_seconds: float = Field(
        default=10.0, gt=0, le=3600, description="Longest wait for accepted requests at shutdown."
    )

    @model_validator(mode="after")
    def _check(self) -> InferenceSettings:
        if self.progress_budget_seconds <= self.stall_seconds:
            raise ValueError(
                "progress_budget_seconds must be above stall_seconds: a worker is restarted "
                "only after it was seen to stall"
            )
        if len(self.models) > self.max_loaded_models:
            raise ValueError("max_loaded_models must not be below the number of models")
        if len(set(self.models)) != len(self.models):
            raise ValueError("models must not name a model twice")
        for model, chain in self.fallbacks.items():
            strangers = {model, *chain} - set(self.models)
            if strangers:
                raise ValueError(f"fallbacks names models that are not served: {sorted(strangers)}")
            if model in chain or len(set(chain)) != len(chain):
                raise ValueError(f"fallbacks of {model} must name each other model once")
        return self

    def deadline_seconds(self, task: str) -> float:
        """Return the end-to-end deadline of a task."""
        if task == "sentiment":
            return self.sentiment_deadline_seconds
        return self.chat_deadline_seconds
