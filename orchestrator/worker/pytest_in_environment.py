"""Runs tests under an environment's own pytest as they are asked for; started by path, needs only pytest.

Orders and reports are JSON lines on two inherited pipes. First comes the session's order, then one for each test:
`{"run": node, "next": node or null}`, answered by the test's reports and `{"done": node}`. At the end of the orders
the session ends.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, Dict, List

import pytest


class Session:
    """Gives each marked test this environment's name as its only parameter, and runs what it is asked to."""

    def __init__(self, order: Dict[str, Any], orders: Any, replies: Any) -> None:
        self.order, self.orders, self.replies = order, orders, replies
        self.name = order["environment"]
        self.errors: List[str] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_configure(self, config: Any) -> None:
        self.config = config
        for name, value in self.order["options"].items():
            setattr(config.option, name, value)
        config.addinivalue_line(
            "markers", "environments(*requirements, family, python): this test runs in environments"
        )
        config.addinivalue_line("markers", "xdist_group(name): the tests that xdist keeps together")

    @pytest.fixture
    def environment(self, request: Any) -> str:
        """The name of the environment that the test runs in."""
        return str(request.param)

    def pytest_generate_tests(self, metafunc: Any) -> None:
        if metafunc.definition.get_closest_marker("environments") is None:
            return
        if "environment" not in metafunc.fixturenames:
            metafunc.fixturenames.append("environment")
        metafunc.parametrize("environment", [self.name], ids=[self.name], indirect=True, scope="session")

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.errors.append(f"{report.nodeid}:\n{report.longreprtext}")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: Any) -> bool:
        # Our own report is all that is shown; the terminal's words would go among the tests' under `-s`.
        self.config.pluginmanager.unregister(name="terminalreporter")
        items = {item.nodeid: item for item in session.items}
        for line in self.orders:
            order = json.loads(line)
            item = items.get(order["run"])
            if item is None:
                self.say({"missing": "\n".join(self.errors)})
                continue
            item.ihook.pytest_runtest_protocol(item=item, nextitem=items.get(order["next"]))
            self.say({"done": order["run"]})
        return True

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.say(self.config.hook.pytest_report_to_serializable(config=self.config, report=report))

    def say(self, reply: Dict[str, Any]) -> None:
        self.replies.write(json.dumps(reply, default=str) + "\n")
        self.replies.flush()


def main() -> int:
    with os.fdopen(int(sys.argv[1]), encoding="utf-8") as orders, os.fdopen(
        int(sys.argv[2]), "w", encoding="utf-8"
    ) as replies:
        for pipe in (orders, replies):
            os.set_inheritable(pipe.fileno(), False)  # what a test leaves running must not hold them open
        order = json.loads(orders.readline())
        sys.path.insert(0, order["rootdir"])
        arguments = ["-qq", "-p", "no:cacheprovider", "--rootdir", order["rootdir"], "-o", "addopts="]
        # The configuration may hold keys of plugins that this environment does not have.
        arguments += [f"--capture={order['capture']}", "-W", "ignore::pytest.PytestConfigWarning"]
        if order["config"]:
            arguments += ["-c", order["config"]]
        return int(pytest.main([*arguments, *order["files"]], plugins=[Session(order, orders, replies)]))


if __name__ == "__main__":
    sys.exit(main())
