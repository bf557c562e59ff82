"""The store: environments by content, built once, whoever asks and however many ask at the same time."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from orchestrator.environments.build import build
from orchestrator.environments.build_log import logged
from orchestrator.environments.bytecode import keep
from orchestrator.environments.catalog import Catalog
from orchestrator.environments.commands import check_cancelled, parallel
from orchestrator.environments.environment import (
    MARKER,
    Environment,
    read_environment,
    read_recipe,
    site_packages,
)
from orchestrator.environments.existing import existing_environment, look_into
from orchestrator.environments.family import Family
from orchestrator.environments.interpreters import Interpreter
from orchestrator.environments.lock import work_folder
from orchestrator.environments.probe import probe as run_probe
from orchestrator.environments.prune import Pruned, choose, drop_unused_bytecode, wanted_by
from orchestrator.environments.recipe import Recipe, recipe_for, recipe_of_lock
from orchestrator.environments.requirements import name_of
from orchestrator.environments.sizes import scan
from orchestrator.environments.usage import Usage
from orchestrator.environments.uv import prepare_home, refusal, run_uv
from orchestrator.environments.verify import Verification, check_files
from orchestrator.errors import InstallError, ProvisioningError
from orchestrator.events import Event, Listener, ignore
from orchestrator.settings import Settings
from orchestrator.waiting import result_of

__all__ = ["EnvironmentStore"]

BUILDING = ".building-"
DISCARDED = ".discarded-"
AT_ONCE = 4
"""Builds that run at the same time in `ensure_all`."""
FRESH = 60.0
"""Seconds in which a discarded folder is left to the process that is removing it."""


class EnvironmentStore:
    """Environments in `settings.home/environments/<id>`. Safe to use from many threads and processes."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.folder = settings.home / "environments"
        self.usage = Usage(settings.home)

    def ensure(
        self, family: Family, listener: Listener = ignore, *, retry: bool = False, probe: bool = True
    ) -> Environment:
        """The environment of a family, built now if there is none.

        The first one to ask builds it, others wait for that. `retry` tries again what is on record as impossible.
        Without `probe` it is installed and checked, but not imported from: for those who start a worker in it at
        once, which imports the same and then tells by `confirm`.

        Raises:
            ProvisioningError: it cannot be made; the subclass says at which step, `log` keeps uv's own words.
        """
        if family.python is not None:
            return self._existing(family, family.python, listener, probe=probe)
        recipe = recipe_for(self.settings, family, make=True, retry=retry, listener=listener)
        assert recipe is not None
        return self._made(family, recipe, listener, probe=probe)

    def restore(
        self, family: Family, lock: str, *, python: str, torch_backend: str, listener: Listener = ignore
    ) -> Environment:
        """An environment of exactly the distributions of a lock that was kept, whatever the family says today.

        Args:
            lock: the text of a built environment's `requirements.lock`: every distribution with its hashes.
            python: the version that it was built with, such as `3.11.7`; another patch version will do.
            torch_backend: the build of torch that is in it, or `none`.

        Raises:
            ProvisioningError: it cannot be installed here.
        """
        recipe = recipe_of_lock(
            self.settings, family, lock, python=python, torch_backend=torch_backend, listener=listener
        )
        return self._made(family, recipe, listener, probe=True)

    def ensure_all(
        self,
        families: Sequence[Family],
        listener: Listener = ignore,
        *,
        retry: bool = False,
        probe: bool = True,
    ) -> Sequence[Environment | ProvisioningError]:
        """The environments of several families, built at the same time; an error stands in the place of its family.

        Ctrl-C ends every build.
        """

        def one(family: Family) -> Environment | ProvisioningError:
            try:
                return self.ensure(family, listener, retry=retry, probe=probe)
            except ProvisioningError as error:
                return error

        with parallel(AT_ONCE) as submit:
            futures = [submit(one, family) for family in families]
            return [result_of(future) for future in futures]

    @contextmanager
    def ensuring(self, family: Family, listener: Listener = ignore) -> Iterator[Future[Environment]]:
        """`ensure` beside other work: in a thread while the block runs. An error in the block, Ctrl-C too, ends it."""
        with parallel(1) as submit:
            yield submit(self.ensure, family, listener)

    def find(self, family: Family) -> Environment | None:
        """The environment of a family if it is there; asks no index and builds nothing."""
        if family.python is not None:
            return existing_environment(self.settings, family, family.python)
        recipe = recipe_for(self.settings, family, make=False)
        return None if recipe is None else self._ready(recipe)

    def confirmed(self, environment: Environment) -> bool:
        """Whether what it is for has been imported from it."""
        return self.usage.confirmed(environment.id)

    def confirm(self, environment: Environment) -> None:
        """Records that importing from it has worked, and shares the byte code that this left."""
        if not environment.borrowed:
            keep(environment.path, self.settings.home / "bytecode")
        self.usage.confirm(environment.id)

    def list(self) -> list[Environment]:
        """Every finished environment, the last used one first."""
        found = [read_environment(path, self.settings.home) for path in self._folders()]
        known = [environment for environment in found if environment is not None]
        return sorted(known, key=lambda e: self.last_used(e.id), reverse=True)

    def get(self, environment_id: str) -> Environment | None:
        """The finished environment with this id, or with the only id that begins so."""
        matches = [path for path in self._folders() if path.name.startswith(environment_id)]
        return (
            read_environment(matches[0], self.settings.home) if len(matches) == 1 and environment_id else None
        )

    def last_used(self, environment_id: str) -> float:
        """When it was last asked for, in seconds since the epoch; 0 if that is not on record."""
        return self.usage.last_used(environment_id)

    def families_of(self, environment_id: str) -> tuple[str, ...]:
        """The labels of the families that have asked for it."""
        return self.usage.families_of(environment_id)

    def verify(
        self, environment: Environment, listener: Listener = ignore, *, probe: bool = True
    ) -> Verification:
        """Reads every installed file against its RECORD hash and, with `probe`, runs the import probe."""
        recipe = self._recipe_of(environment)
        result = check_files(environment, listener)
        if not probe:
            return result
        try:
            self._probe(environment.path, recipe, listener)
        except InstallError as error:
            return dataclasses.replace(result, probe_error=error.message)
        return result

    def repair(self, environment: Environment, listener: Listener = ignore) -> Environment:
        """Builds an environment again from its record and puts it in the place of the old one.

        Files are hard links, so damage done to one is in uv's cache as well: the damaged distributions are
        dropped from the cache first. Workers that run in the old folder keep what they have open.

        Raises:
            InstallError: it cannot be built, or the record itself is damaged.
        """
        recipe = self._recipe_of(environment)
        damaged = sorted({fault.distribution for fault in check_files(environment).faults if fault.shared})
        with self._turn(recipe, listener):
            if damaged:
                listener(Event("environment", recipe.label, f"dropping {', '.join(damaged)} from uv's cache"))
                done = run_uv(
                    self.settings, ["cache", "clean", *damaged], listener=listener, subject=recipe.label
                )
                if done.returncode != 0:
                    raise refusal(f"the damaged files of {', '.join(damaged)} stay in uv's cache", done)
            self._publish(recipe, listener, probe=True)
            repaired = self._ready(recipe)
            assert repaired is not None
            self.confirm(repaired)
        listener(Event("environment", recipe.label, f"repaired ({repaired.id})", finished=True))
        return repaired

    def prune(
        self,
        catalog: Catalog | None = None,
        *,
        older_than: float | None = None,
        max_bytes: int | None = None,
        dry_run: bool = False,
    ) -> Pruned:
        """Removes environments by age (seconds since the last use), by size, and (with `catalog`) those that no
        family would choose today. What processes run in stays. With `dry_run` it only says what it would do."""
        wanted = None if catalog is None else wanted_by(catalog, self.families_of, self.find)
        candidates, freed = choose(
            self.list(), older_than=older_than, max_bytes=max_bytes, wanted=wanted, last_used=self.last_used
        )
        leftovers = self._left_behind()
        freed += scan(leftovers).size().own
        if dry_run:
            return Pruned(tuple(candidates), freed, tuple(leftovers), dry_run=True)
        for candidate in candidates:
            if not candidate.held_by:
                with self.exclusively(candidate.environment.id):
                    self.discard(candidate.environment.path)
                    self.usage.forget(candidate.environment.id)
                    shutil.rmtree(candidate.environment.modules_cache, ignore_errors=True)
                    shutil.rmtree(
                        self.settings.home / "sandbox" / candidate.environment.id, ignore_errors=True
                    )
        _remove(leftovers)
        drop_unused_bytecode(self.settings.home / "bytecode")
        return Pruned(tuple(candidates), freed, tuple(leftovers))

    @contextmanager
    def exclusively(self, environment_id: str, wait: float = -1) -> Iterator[None]:
        """Holds the right to build or remove one environment, among all processes.

        Raises:
            filelock.Timeout: another process had it for longer than `wait` seconds (negative: no limit).
        """
        folder = prepare_home(self.settings) / "state" / "mutex"
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{environment_id}.lock", timeout=wait):
            yield

    def discard(self, path: Path) -> None:
        """Takes a folder out of the way in one step, then removes it."""
        grave = Path(tempfile.mkdtemp(prefix=DISCARDED, dir=self.folder))
        path.rename(grave / path.name)
        shutil.rmtree(grave, ignore_errors=True)

    def _left_behind(self, held: str = "") -> Sequence[Path]:
        """What killed builds left behind.

        A build that goes on holds its environment's lock. `held` is the one that the caller has, so that what
        bears its name is left over.
        """
        gone: list[Path] = []
        for path in self.folder.glob(".*"):
            if path.name.startswith(DISCARDED) and time.time() - path.stat().st_mtime > FRESH:
                gone.append(path)
            elif path.name.startswith(BUILDING):
                its = path.name.removeprefix(BUILDING).split("-")[0]
                if its == held or self._is_free(its):
                    gone.append(path)
        work = (self.settings.home / "work").glob("*-*")
        gone.extend(path for path in work if not psutil.pid_exists(int(path.name.split("-")[0])))
        return gone

    def _recipe_of(self, environment: Environment) -> Recipe:
        if environment.borrowed:
            raise InstallError(
                f"{environment.python} is not ours: it is used as it is, and neither checked nor repaired"
            )
        record = read_recipe(environment.path)
        if record is not None:
            recipe = Recipe.from_record(record)
            if recipe.id == environment.id:
                return recipe
        raise InstallError(
            f"{environment.path / MARKER} is damaged",
            hint="remove the folder; the next `env ensure` builds it again",
        )

    def _made(self, family: Family, recipe: Recipe, listener: Listener, *, probe: bool) -> Environment:
        try:
            found = self._ready(recipe)
            if found is None or (probe and not self.confirmed(found)):
                found = self._build(recipe, listener, probe=probe)
        except OSError as error:
            raise _disk_error(family, self.settings, error) from error
        self.usage.stamp(found.id, family.label)
        return found

    def _build(self, recipe: Recipe, listener: Listener, *, probe: bool) -> Environment:
        with self._turn(recipe, listener) as waited:
            started = time.perf_counter()
            found = self._ready(recipe)
            if found is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                _remove(self._left_behind(held=recipe.id))
                self._publish(recipe, listener, probe=probe)
                found = self._ready(recipe)
                assert found is not None
            elif probe and not self.confirmed(found):
                self._probe(found.path, recipe, listener)
            else:
                if waited:
                    words = f"ready, made by another process ({found.id})"
                    listener(Event("environment", recipe.label, words, finished=True))
                return found
            if probe:
                self.confirm(found)
            seconds = time.perf_counter() - started
            words = f"ready in {seconds:.1f} s ({found.id})"
            listener(Event("environment", recipe.label, words, finished=True))
            return found

    def _publish(self, recipe: Recipe, listener: Listener, *, probe: bool) -> None:
        beside = Path(tempfile.mkdtemp(prefix=f"{BUILDING}{recipe.id}-", dir=self.folder))
        place = self.folder / recipe.id
        try:
            with logged(self.settings, recipe.label, listener) as tell:
                build(self.settings, recipe, beside / recipe.id, tell)
                if probe:
                    self._probe(beside / recipe.id, recipe, tell)
            self.usage.doubt(recipe.id)
            if place.exists():
                self.discard(place)
            os.rename(beside / recipe.id, place)
        finally:
            shutil.rmtree(beside, ignore_errors=True)

    def _probe(self, path: Path, recipe: Recipe, listener: Listener) -> None:
        with work_folder(self.settings) as work:
            run_probe(path / "bin" / "python", [site_packages(path)], recipe, work, listener)

    def _existing(self, family: Family, python: Path, listener: Listener, *, probe: bool) -> Environment:
        found = existing_environment(self.settings, family, python)
        if probe and not self.confirmed(found):
            interpreter = Interpreter(python, found.python_version)
            direct = tuple(name_of(text) for text in family.direct)
            recipe = Recipe(family.label, interpreter, "", "", direct=direct, probe=family.probe)
            sites = look_into(self.settings, python).sites
            with work_folder(self.settings) as work:
                run_probe(python, sites, recipe, work, listener, write=False)
            self.usage.confirm(found.id)
        return found

    @contextmanager
    def _turn(self, recipe: Recipe, listener: Listener) -> Iterator[bool]:
        """Holds the right to build; True if somebody else had it before."""
        with ExitStack() as held:
            wait = 0.0
            while True:
                check_cancelled()
                try:
                    held.enter_context(self.exclusively(recipe.id, wait))
                    break
                except Timeout:
                    listener(Event("environment", recipe.label, "waiting: another process is building it"))
                    wait = 1.0
            yield wait > 0

    def _is_free(self, environment_id: str) -> bool:
        try:
            with self.exclusively(environment_id, wait=0):
                return True
        except Timeout:
            return False

    def _ready(self, recipe: Recipe) -> Environment | None:
        return read_environment(self.folder / recipe.id, self.settings.home, recipe.label)

    def _folders(self) -> Sequence[Path]:
        try:
            return sorted(path for path in self.folder.iterdir() if not path.name.startswith("."))
        except OSError:
            return []


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)


def _disk_error(family: Family, settings: Settings, error: OSError) -> InstallError:
    full = error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
    return InstallError(
        f"{family.label} cannot be built in {settings.home}: {error.strerror or error}",
        hint="`orchestrator env prune` frees room; ORCHESTRATOR_HOME moves the store" if full else None,
        log=str(error),
    )
