"""Every executor, by the name that the policy calls it."""

from __future__ import annotations

from collections.abc import Mapping

from healing.executors.contract import Executor
from healing.executors.gpu import GpuControl, GpuExecutor
from healing.executors.nothing import NothingExecutor
from healing.executors.service import ServiceExecutor
from healing.settings import HealingSettings


def build_executors(
    settings: HealingSettings, gpu_controls: Mapping[str, GpuControl] | None = None
) -> dict[str, Executor]:
    """Return the executors.

    Args:
        settings: names the services that may be acted on.
        gpu_controls: the GPUs that may be acted on, by entity.
    """
    executors: tuple[Executor, ...] = (
        ServiceExecutor(settings.services),
        GpuExecutor(gpu_controls or {}),
        NothingExecutor(),
    )
    return {executor.name: executor for executor in executors}
