"""Finding the teacher that an option names."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, TypeVar

from smolbench.errors import SmolbenchError
from smolbench.models.pretrained.adapter_folder import ADAPTER_CONFIG
from smolbench.models.pretrained.backbone import TINY
from smolbench.runs.recipes import recipe_names
from smolbench.runs.results import FILE_NAME
from smolbench.runs.run_dir import Run, find_runs, recipe_name, run_of, run_of_config
from smolbench.tasks.distillation.teacher import Teacher

T = TypeVar("T", bound=Teacher)
Found = TypeVar("Found", bound=Teacher, covariant=True)


class TeacherKinds(Protocol[Found]):
    """Which teachers there are for the students of a kind."""

    def of_run(self, run: Run, checkpoint: Path | None = None) -> Found:
        """What a finished run has trained, by its best checkpoint if none is given.

        Raises:
            SmolbenchError: If the run cannot teach.
        """
        ...

    def of_model(self, name: str) -> Found:
        """A model that others have trained, by its id or folder.

        Raises:
            SmolbenchError: If there is none, or it cannot teach.
        """
        ...

    def built_in(self) -> Found:
        """A teacher that needs neither a run nor a network."""
        ...


def find_teacher(
    given: str,
    kinds: TeacherKinds[T],
    *,
    runs_dir: Path,
    tiny_student: bool = False,
    identity: str | None = None,
) -> T:
    """The teacher that an option names.

    Args:
        given: A run's folder, its ``config.yaml`` or a checkpoint in it, a recipe by name or file
            (its newest finished run is meant), the id or folder of a trained model, or ``tiny``.
        kinds: What each of these means.
        runs_dir: Folder of all runs.
        tiny_student: Whether the student is a built-in tiny model. Of a shipped recipe its run on
            tiny models is meant then, or, where there is none, the built-in teacher.
        identity: Of a recipe's finished runs, the one of this identity instead of the newest.

    Raises:
        SmolbenchError: If there is no such teacher, or it cannot teach.
    """
    if given == TINY:
        return kinds.built_in()
    path = Path(given).expanduser()
    if path.suffix in {".yaml", ".yml"}:
        run = run_of_config(path)
        given = str(run.path) if run else recipe_name([path])
        path = Path(given)
    if path.is_file():
        run = run_of(path)
        if run is None:
            raise SmolbenchError(
                f"The teacher's checkpoint {path} does not lie in a run's folder, whose settings "
                "it needs: name the run."
            )
        return kinds.of_run(run, path.resolve())
    if (path / FILE_NAME).is_file():
        return kinds.of_run(Run(path))
    shipped = given in recipe_names()
    if path.is_dir() and not shipped:
        if not any((path / name).is_file() for name in ("config.json", ADAPTER_CONFIG)):
            raise SmolbenchError(
                f"The teacher {path} is a folder that holds neither a run nor a model."
            )
        return kinds.of_model(given)
    if tiny_student and shipped:
        built_in = kinds.built_in()
        if identity != built_in.identity and find_runs(runs_dir, f"{given}+tiny"):
            return _of_recipe(f"{given}+tiny", kinds, runs_dir, identity)
        built_in.remark = f"For the teacher {given} the built-in tiny one stands in."
        return built_in
    if shipped or find_runs(runs_dir, given):
        return _of_recipe(given, kinds, runs_dir, identity)
    if len(path.parts) not in (1, 2) or given.startswith(("/", ".", "~")):
        raise SmolbenchError(f"There is no run, checkpoint or model {given} to be the teacher.")
    try:
        return kinds.of_model(given)
    except SmolbenchError as error:
        raise SmolbenchError(
            f"model.teacher {given!r} is no run's folder, checkpoint or recipe: as a model's id it "
            f"was tried in vain. {error}"
        ) from error


def whole_name(given: str) -> str:
    """How :func:`find_teacher` finds the same teacher in any working directory.

    What it takes for a file or folder is named by its whole path; a recipe, or the id of a model,
    stays as it is.
    """
    path = Path(given).expanduser()
    if path.suffix in {".yaml", ".yml"}:
        run = run_of_config(path)
        return str(run.path) if run else given
    local = path.is_file() or (path / FILE_NAME).is_file()
    local = local or (path.is_dir() and given not in (TINY, *recipe_names()))
    return str(path.resolve()) if local else given


def _of_recipe(recipe: str, kinds: TeacherKinds[T], runs_dir: Path, identity: str | None) -> T:
    """The newest finished run of a recipe, or its run of an identity."""
    found = [
        run
        for run in find_runs(runs_dir, recipe)
        if "attempts" in (results := run.results())
        and results.get("status") == "finished"
        and run.checkpoint("best").is_file()
    ]
    if not found:
        raise SmolbenchError(
            f"There is no finished run of {recipe} below {runs_dir} to be the teacher: train it "
            f"first (`smolbench fit --config {recipe.replace('+', ' --config ')}`), or name "
            "another with --model.teacher."
        )
    teachers = map(kinds.of_run, found)
    if identity is None:
        return next(teachers)
    for teacher in teachers:
        if teacher.identity == identity:
            return teacher
    raise SmolbenchError(
        f"The run of {recipe} that this training has learned from so far is gone or has changed: "
        "start a new training, without --ckpt_path."
    )
