"""A lock that was kept, and the environment that is made of it again."""

from __future__ import annotations

import platform

import pytest

from orchestrator.errors import InstallError, InterpreterNotFound, ProvisioningError


def test_a_kept_lock_gives_the_same_environment_whatever_the_family_says_now(machine):
    machine.wheel("model", "1.0")
    old = machine.ensure(machine.declare("family", ["model"]))
    lock = (old.path / "requirements.lock").read_text()
    machine.wheel("model", "2.0")
    family = machine.declare("family", ["model==2.0"])
    assert machine.ensure(family).versions["model"] == "2.0"
    machine.store.discard(old.path)
    again = machine.store.restore(family, lock, python=old.python_version, torch_backend="none")
    assert (again.id, again.versions) == (old.id, old.versions)
    assert machine.store.confirmed(again)
    minor = ".".join(old.python_version.split(".")[:2])
    nearly = machine.store.restore(family, lock, python=f"{minor}.99", torch_backend="none")
    assert nearly.versions == old.versions


def test_a_lock_that_does_not_fit_here_is_refused_with_the_reason(machine):
    family = machine.declare("family")
    lock = "model==1.0 \\\n    --hash=sha256:" + "0" * 64 + "\n"
    arguments = {"python": platform.python_version(), "torch_backend": "none"}
    with pytest.raises(ProvisioningError, match=r"(?s)family.*model"):
        machine.store.restore(family, lock, **arguments)
    with pytest.raises(InterpreterNotFound, match=r"3\.4"):
        machine.store.restore(family, lock, python="3.4.1", torch_backend="none")
    for backend, reason in (("cuda", "no NVIDIA driver"), ("borrow:/opt/python", "a lock cannot hold")):
        with pytest.raises(InstallError, match=reason):
            machine.store.restore(family, lock, **{**arguments, "torch_backend": backend})
    assert machine.leftovers() == []
