"""Where everything lives under the state directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from collectors.gpu.release import RELEASE_FILE
from galen.errors import GalenError


@dataclass(frozen=True, slots=True)
class StatePaths:
    """The files and folders of one state directory."""

    state_dir: Path

    @property
    def series(self) -> Path:
        """The series store."""
        return self.state_dir / "series.sqlite"

    @property
    def journal(self) -> Path:
        """The journal, with the ledger and the outbox beside it."""
        return self.state_dir / "journal.sqlite"

    @property
    def status(self) -> Path:
        """How the watch loop fares; replaced at every tick."""
        return self.state_dir / "watch_status.json"

    @property
    def backfill(self) -> Path:
        """How far history has been read from Prometheus."""
        return self.state_dir / "backfill.json"

    @property
    def simulated_gpu(self) -> Path:
        """The control file of the simulated GPU."""
        return self.state_dir / "simulated_gpu.json"

    @property
    def gpu_release(self) -> Path:
        """Where a reset asks Galen's own reader to let go of the GPUs."""
        return self.state_dir / RELEASE_FILE

    @property
    def service(self) -> Path:
        """What the bundled service keeps: admin token, model repository."""
        return self.state_dir / "service"

    @property
    def admin_token(self) -> Path:
        """The admin token of the bundled service, readable by its owner alone."""
        return self.service / "admin_token"

    @property
    def reports(self) -> Path:
        """The archive of reports."""
        return self.state_dir / "reports"

    @property
    def logs(self) -> Path:
        """The output of each part."""
        return self.state_dir / "logs"

    @property
    def detection(self) -> Path:
        """What detection has learnt."""
        return self.state_dir / "detection.npz"

    def read_admin_token(self) -> str:
        """Return the bundled service's admin token.

        Raises:
            GalenError: when the service has not written one.
        """
        try:
            return self.admin_token.read_text("utf-8").strip()
        except OSError as error:
            raise GalenError(
                f"{self.admin_token}: cannot be read: {error.strerror}",
                fix="Start the service first: `galen serve` writes it.",
            ) from error
