"""What recipes print while they train."""

from statistics import fmean

from clipcap.training import EpochEnd, Progress

EVERY = 50  # steps


class Report:
    """Prints the mean loss of every fifty steps; as `on_progress` of a training."""

    def __init__(self) -> None:
        self.losses: dict[int, float] = {}  # by step: each is told again while validating

    def __call__(self, progress: Progress) -> bool:
        if progress.step not in self.losses:
            self.losses[progress.step] = progress.train_loss
            if progress.step % EVERY == 0:
                loss = fmean(list(self.losses.values())[-EVERY:])
                print(
                    f"{progress.step}/{progress.steps} loss {loss:.3f}, {progress.samples_per_second:.0f} captions/s, "
                    f"{progress.eta_seconds:.0f} s left",
                    flush=True,
                )
        return True


def report_epoch(epoch: EpochEnd) -> None:
    """Print the losses of an epoch; as `on_epoch` of a training."""
    print(
        f"epoch {epoch.epoch}, step {epoch.step}: loss {epoch.training_loss:.3f}, on dev {epoch.validation_loss:.3f}",
        flush=True,
    )
