"""All sections together, and what one asks of another."""

from pydantic import Field, ValidationInfo, field_validator, model_validator

from dass.recovery.recipe import check_enough
from tasks.workspace.settings.calibration import Calibration
from tasks.workspace.settings.engine import Engine
from tasks.workspace.settings.evaluate import Evaluate
from tasks.workspace.settings.notify import Notify
from tasks.workspace.settings.promote import Promote
from tasks.workspace.settings.prune import Prune
from tasks.workspace.settings.recover import Recover
from tasks.workspace.settings.register import Register
from tasks.workspace.settings.section import Section
from tasks.workspace.settings.sources import Sources
from tasks.workspace.settings.sweep import Sweep


class Settings(Section):
    """Everything params.yaml says, one section a stage."""

    sources: Sources
    calibration: Calibration
    prune: Prune
    recover: Recover = Recover()
    engine: Engine
    evaluate: Evaluate
    register_: Register = Field(alias="register")
    promote: Promote = Promote()
    sweep: Sweep = Field(default=Sweep(), exclude=True)  # of no result
    notify: Notify = Field(default=Notify(), exclude=True)

    @field_validator("prune")
    @classmethod
    def _leaves_windows_to_prune_with(cls, value: Prune, info: ValidationInfo) -> Prune:
        if (calibration := info.data.get("calibration")) is not None:
            value.plan.check_samples(calibration.samples)
        return value

    @model_validator(mode="after")
    def _there_is_enough_to_train_on(self) -> "Settings":
        if self.recover.steps:
            windows = self.recover.windows or self.calibration.samples
            length = self.recover.sequence_length or self.calibration.sequence_length
            check_enough(windows, length, self.recover.recipe, self.engine.ranks)
        return self
