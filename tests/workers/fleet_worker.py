"""A fleet worker whose trials do next to nothing, so that many can be placed; all but the training is real."""

from __future__ import annotations

from workers import __main__, supervisor

if __name__ == "__main__":
    supervisor.FLEET = "tests.workers.fleet_driver"
    __main__.main()
