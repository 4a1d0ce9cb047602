"""The service seen by OpenAI's own client: objects, streams, error classes, retries."""

import json

import openai
import pytest

pytestmark = pytest.mark.integration

CHAT = [{"role": "user", "content": "hi you"}]


def _client(live, **options):
    return openai.OpenAI(
        base_url=f"{live.url}/v1", api_key="none", **{"max_retries": 0, "timeout": 30.0, **options}
    )


def _ask_thrice(client):
    for _ in range(3):
        client.completions.create(model="tiny", prompt="hi")


@pytest.fixture
def client(live):
    with _client(live) as client:
        yield client


@pytest.fixture
def start(tools, own_repository, tmp_path):
    def begin(**settings):
        return tools.run_service(own_repository, tmp_path / "state", **settings)

    return begin


def test_a_completion_is_parsed_with_its_usage(client):
    answer = client.completions.create(model="tiny", prompt="hello", max_tokens=5, temperature=0)
    assert answer.object == "text_completion"
    assert answer.model == "tiny"
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].text
    assert answer.usage.completion_tokens == 5
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 5


def test_the_request_id_is_where_the_client_looks_for_it(client):
    answer = client.completions.create(
        model="tiny", prompt="hello", extra_headers={"x-request-id": "mine-1"}
    )
    assert answer._request_id == "mine-1"


def test_a_chat_completion_is_parsed_with_its_message(live, client):
    golden = live.service.hosts["tiny"].metadata().golden[1]
    answer = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": golden.text}]
    )
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == golden.expected
    assert answer.usage.prompt_tokens_details.cached_tokens >= 0


@pytest.mark.parametrize("usage", [False, True])
def test_a_streamed_chat_gives_the_same_text_and_closes(client, usage):
    whole = client.chat.completions.create(model="tiny", messages=CHAT)
    options = {"stream_options": {"include_usage": True}} if usage else {}
    with client.chat.completions.create(
        model="tiny", messages=CHAT, stream=True, **options
    ) as stream:
        chunks = list(stream)
    texts = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(texts) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    reasons = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert reasons[-1] == whole.choices[0].finish_reason
    assert set(reasons[:-1]) <= {None}
    assert len({c.id for c in chunks}) == 1
    assert (chunks[-1].usage is not None) is usage
    if usage:
        assert chunks[-1].usage == whole.usage or chunks[-1].usage.completion_tokens > 0


def test_the_clients_own_accumulator_of_streams_agrees(client):
    whole = client.chat.completions.create(model="tiny", messages=CHAT)
    with client.chat.completions.stream(model="tiny", messages=CHAT) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == whole.choices[0].message.content
    assert final.choices[0].finish_reason == whole.choices[0].finish_reason


def test_a_streamed_completion_gives_the_same_text(client):
    whole = client.completions.create(model="tiny", prompt="hello", max_tokens=6)
    chunks = client.completions.create(model="tiny", prompt="hello", max_tokens=6, stream=True)
    assert "".join(c.choices[0].text for c in chunks if c.choices) == whole.choices[0].text


def test_models_are_listed_and_retrieved(client):
    listed = client.models.list()
    assert [model.id for model in listed] == ["tiny", "tiny-small"]
    model = client.models.retrieve("tiny-small")
    assert (model.id, model.object, model.owned_by) == ("tiny-small", "model", "galen")


@pytest.mark.parametrize(
    ("ask", "raised"),
    [
        (lambda c: c.completions.create(model="none", prompt="x"), openai.NotFoundError),
        (lambda c: c.models.retrieve("none"), openai.NotFoundError),
        (lambda c: c.embeddings.create(model="tiny", input="x"), openai.NotFoundError),
        (lambda c: c.completions.create(model="tiny", prompt="x", n=2), openai.BadRequestError),
        (
            lambda c: c.completions.create(model="tiny", prompt="x" * 9000),
            openai.BadRequestError,
        ),
        (lambda c: c.chat.completions.create(model="tiny", messages=[]), openai.BadRequestError),
    ],
)
def test_mistakes_become_the_clients_error_classes(client, ask, raised):
    with pytest.raises(raised) as caught:
        ask(client)
    error = caught.value
    assert error.code
    assert error.type == "invalid_request_error"
    assert error.request_id.startswith("req-")
    assert error.body["request_id"] == error.request_id


def test_what_does_not_fit_names_the_parameter(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="tiny", prompt="x", temperature=3.0)
    assert caught.value.param == "temperature"


def test_a_missed_deadline_is_a_server_error_of_504(start):
    with start(chat_deadline_seconds=0.5) as live, _client(live) as client:
        live.fault("engine_slow", step_seconds=0.2)
        with pytest.raises(openai.InternalServerError) as caught:
            client.completions.create(model="tiny", prompt="hello")
        assert caught.value.status_code == 504
        assert caught.value.code == "deadline_exceeded"


def test_a_dead_engine_is_a_server_error_of_503(start, tools):
    with start(load_attempts=1) as live, _client(live) as client:
        live.fault("model_load_failure")
        tools.eventually(
            lambda: live.metric("engine_state", model="tiny", state="failed") == 1, "it gives up"
        )
        with pytest.raises(openai.InternalServerError) as caught:
            client.completions.create(model="tiny", prompt="hello")
        assert caught.value.status_code == 503


def test_an_engine_that_dies_under_a_stream_ends_it_with_an_error(start):
    with start() as live, _client(live) as client:
        live.fault("engine_slow", step_seconds=0.05)
        stream = client.completions.create(model="tiny", prompt="hello", stream=True)
        assert next(stream).choices
        live.fault("engine_crash")
        with pytest.raises(openai.APIError) as caught:
            list(stream)
        assert caught.value.code == "engine_failed"


def test_a_refused_request_is_repeated_when_retry_after_says(start):
    waits = []

    class Spy(openai.OpenAI):
        def _calculate_retry_timeout(self, remaining, options, headers=None):
            waited = super()._calculate_retry_timeout(remaining, options, headers)
            waits.append((waited, headers["retry-after"], headers["retry-after-ms"]))
            return waited

    with start(requests_per_second=1.0) as live:
        client = Spy(base_url=f"{live.url}/v1", api_key="none", max_retries=3, timeout=30.0)
        with client, _client(live) as impatient:
            answers = [client.completions.create(model="tiny", prompt="hi") for _ in range(3)]
            assert [answer.object for answer in answers] == ["text_completion"] * 3
            with pytest.raises(openai.RateLimitError) as caught:
                _ask_thrice(impatient)
    assert caught.value.type == "rate_limit_error"
    assert waits
    for waited, seconds, milliseconds in waits:
        # The client's own backoff begins at half a second and leaves more to chance.
        assert waited == int(milliseconds) / 1000
        assert abs(waited - int(seconds)) <= 0.5
        assert waited >= 1.0


def test_unknown_fields_of_newer_clients_are_ignored(client):
    answer = client.chat.completions.create(
        model="tiny", messages=CHAT, user="someone", presence_penalty=0.1, extra_body={"new": 1}
    )
    assert json.loads(answer.to_json())["choices"]
