"""When a schedule fires: five cron fields in a time zone, and a delay that spreads runs which are due together."""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from itertools import pairwise
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from dass.errors import InputError

if TYPE_CHECKING:
    from prefect.client.schemas.schedules import CronSchedule

_FIELDS = 5
_LOOKED_AT = 50  # firings whose distances a jitter is compared with


@dataclass(frozen=True)
class Timetable:
    """When runs are due.

    Attributes:
        cron: minute hour day month weekday.
        zone: IANA name of the time zone that they are read in.
        jitter: seconds; a run starts up to so much later. How much is the same whenever it is asked, and another for
            each run and workspace.
    """

    cron: str
    zone: str = "UTC"
    jitter: int = 0

    @classmethod
    def read(cls, cron: str, zone: str = "UTC", jitter: int = 0) -> "Timetable":
        """A timetable that can be kept.

        Raises:
            InputError: it is no schedule of five fields, or never fires; no such time zone; the jitter is negative or
                not shorter than the time between two runs.
        """
        made = cls(cron, zone, jitter)
        made._check_zone()
        made._check_cron()
        made._check_jitter()
        return made

    @property
    def schedule(self) -> "CronSchedule":
        """Prefect's."""
        from prefect.client.schemas.schedules import CronSchedule

        return CronSchedule(cron=self.cron, timezone=self.zone)

    @property
    def told(self) -> str:
        spread = f", up to {self.jitter} s later" if self.jitter else ""
        return f'"{self.cron}" ({self.zone}{spread})'

    def due_after(self, moment: datetime) -> datetime:
        """When the next run behind a moment is due, without its delay, in the timetable's zone.

        Asked of Prefect, whose server plans the runs: hours that a zone leaves out or has twice are its matter.
        """
        return self._due(1, moment)[0]

    def delay(self, workspace: str, due: datetime) -> int:
        """How many seconds behind `due` the workspace's run starts: 0 to `jitter`."""
        text = f"{workspace}\n{due.astimezone(UTC).isoformat(timespec='seconds')}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) % (self.jitter + 1)

    def start_after(self, workspace: str, moment: datetime) -> datetime:
        """When the workspace's next run behind a moment starts, with its delay."""
        due = self.due_after(moment)
        return due + timedelta(seconds=self.delay(workspace, due))

    def _due(self, count: int, moment: datetime) -> list[datetime]:
        import asyncio

        from prefect.server.schemas.schedules import CronSchedule

        schedule = CronSchedule(cron=self.cron, timezone=self.zone)
        found = asyncio.run(schedule.get_dates(count, start=moment + timedelta(microseconds=1)))
        return [datetime.fromisoformat(each.isoformat()).astimezone(self._zone) for each in found]

    @property
    def _zone(self) -> ZoneInfo:
        return ZoneInfo(self.zone)

    def _check_zone(self) -> None:
        from pydantic import ValidationError

        try:
            from prefect.client.schemas.schedules import CronSchedule

            CronSchedule(cron="0 0 * * *", timezone=self.zone)
            ZoneInfo(self.zone)
            if self.zone:
                return
        except (ValidationError, ZoneInfoNotFoundError, ValueError, OSError):
            pass
        near = get_close_matches(self.zone.replace(" ", "_"), sorted(available_timezones()), 1, 0.6)
        meant = f" Did you mean {near[0]}?" if near else ""
        raise InputError(
            f'--timezone "{self.zone}" is no time zone: expected an IANA name such as UTC or Europe/Berlin.{meant}'
        )

    def _check_cron(self) -> None:
        from prefect._vendor.croniter.croniter import CroniterBadDateError, croniter
        from pydantic import ValidationError

        expected = (
            'expected minute hour day month weekday, for example "0 2 * * *" for every night at two, in --timezone'
        )
        if len(self.cron.split()) != _FIELDS:
            raise InputError(f'--cron "{self.cron}" is not a schedule: {expected}')
        try:
            croniter(self.schedule.cron, datetime.now(UTC)).get_next(datetime)
        except ValidationError:
            raise InputError(f'--cron "{self.cron}" is not a schedule: {expected}') from None
        except CroniterBadDateError:
            raise InputError(
                f'--cron "{self.cron}" never fires: there is no such day. {expected.capitalize()}'
            ) from None

    def _check_jitter(self) -> None:
        if self.jitter < 0:
            raise InputError(f"--jitter is {self.jitter}: expected seconds, 0 or more.")
        if self.jitter == 0:
            return
        planned = self._due(_LOOKED_AT, datetime.now(UTC))
        shortest = min(int((later - sooner).total_seconds()) for sooner, later in pairwise(planned))
        if self.jitter >= shortest:
            raise InputError(
                f'--jitter is {self.jitter} s: expected less than the {shortest} s between two runs of "{self.cron}".'
            )
