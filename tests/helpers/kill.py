"""Ways for a run to die in the middle."""

from __future__ import annotations

import pytest
from lightning.pytorch import Callback, Trainer

from smolbench.cli import main
from smolbench.cli.lightning_cli import SmolCLI


class Killed(BaseException):
    """Nothing but the test catches it, and no callback takes it for an interruption."""


class KillAt(Callback):
    """Die at the ``n``-th call of a hook, like a process that is killed there.

    Args:
        hook: Name of the hook.
        n: Which call of it, counted from 1.
    """

    def __init__(self, hook: str, n: int) -> None:
        self.calls = 0

        def die(*args: object, **kwargs: object) -> None:
            # `batch_idx` and the like differ between hooks; only the count matters
            if args and getattr(args[0], "sanity_checking", False):
                return
            self.calls += 1
            if self.calls == n:
                raise Killed(f"{hook} number {n}")

        setattr(self, hook, die)


def die(run: list[str], hook: str, n: int) -> None:
    """Start or go on with a run, which dies at the ``n``-th call of a hook."""
    with pytest.MonkeyPatch.context() as patch:
        # its own settings stay those of the run, so that the next attempt is the same run
        instantiate = SmolCLI.instantiate_trainer

        def with_death(cli: SmolCLI, **options: object) -> Trainer:
            trainer = instantiate(cli, **options)
            trainer.callbacks.insert(0, KillAt(hook, n))
            return trainer

        patch.setattr(SmolCLI, "instantiate_trainer", with_death)
        with pytest.raises(Killed):
            main(run)
