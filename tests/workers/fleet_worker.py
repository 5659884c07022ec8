"""A fleet worker whose trials hardly take time, so that a test can place many; all but the training is real."""

from __future__ import annotations

from workers import __main__, supervisor

if __name__ == "__main__":
    supervisor.FLEET = "tests.workers.fleet_driver"
    __main__.main()
