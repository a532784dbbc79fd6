"""The broker that is a folder, where no server is installed."""

from __future__ import annotations

import threading
from pathlib import Path
from queue import Empty

from celery import Celery

import clipcap_site  # noqa: F401 (its transport)

COUNT = 200


def test_a_message_is_read_whole_while_others_are_written(tmp_path: Path) -> None:
    app = Celery(broker="filesystem://", set_as_current=False)
    app.conf.broker_transport_options = {f"data_folder_{way}": str(tmp_path / "broker") for way in ("in", "out")} | {
        "control_folder": str(tmp_path / "control")
    }
    (tmp_path / "broker").mkdir()
    sent = {"body": "x" * 1_000_000}  # takes a moment to write
    read: list[int] = []

    def send() -> None:
        with app.connection_for_write() as connection:
            for number in range(COUNT):
                connection.default_channel._put("captions", sent | {"number": number})

    sender = threading.Thread(target=send)
    sender.start()
    with app.connection_for_read() as connection:
        while len(read) < COUNT:
            try:
                message = connection.default_channel._get("captions")
            except Empty:
                assert sender.is_alive() or list((tmp_path / "broker").iterdir())
                continue
            assert message["body"] == sent["body"]
            read.append(message["number"])
    sender.join()
    assert sorted(read) == list(range(COUNT))
    assert not list((tmp_path / "broker").iterdir())
