"""Promotions, cut-overs and workers of two pairs of base models, in any order."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from captioner import services
from captioner.errors import Refused
from captioner.jobs.job import Status
from captioner.models import (
    BaseModels,
    Caption,
    CaptionRequest,
    CutOver,
    MapperVersion,
    Promotion,
    Style,
)
from tests.base_models.pair import Base, ask


class Changes(RuleBasedStateMachine):
    """Promotions on two pairs of base models, cut-overs and ways back, some in the midst of a batch, and workers of
    either pair, in any order.

    moment: of a batch; once it is claimed, before the versions that write it are looked up, or once it is decoded.
    change: what somebody does then: promote a version, or let a pair serve.
    """

    pairs: list[Base]
    folder: Path
    photo: bytes
    which = st.integers(0, 5)
    side = st.integers(0, 1)
    moment = st.sampled_from(["claimed", "decoded"])
    change = st.tuples(st.just("promote"), which) | st.tuples(st.just("cut over"), side)

    def __init__(self) -> None:
        super().__init__()
        for model in (Caption, CaptionRequest, Promotion, MapperVersion, Style, CutOver, BaseModels):
            model.objects.all().delete()
        self.bases = [pair.starts() for pair in self.pairs]
        self.styles = [Style.objects.create(slug=slug, name=slug) for slug in ("a", "b")]
        today, tomorrow = self.pairs
        a, b = self.styles
        self.versions = [
            pair.version(style, self.folder)
            for pair, style in ((today, a), (today, b), (today, a), (tomorrow, a), (tomorrow, b), (tomorrow, a))
        ]
        for version in self.versions[:2]:
            services.promote(version=version)
        self.seen: set[Any] = set()

    @rule(which=which)
    def promote(self, which: int) -> None:
        with suppress(Refused):
            services.promote(version=self.versions[which])

    @rule(side=side, leave_out=st.booleans())
    def cut_over(self, side: int, leave_out: bool) -> None:
        with suppress(Refused):
            services.cut_over(base=self.bases[side], leave_out=self.styles if leave_out else ())

    @rule(side=side)
    def ask(self, side: int) -> None:
        with suppress(Refused):
            ask(self.photo, self.styles[side])

    @rule(side=side, moment=moment, change=st.none() | change)
    def work(self, side: int, moment: str, change: tuple[str, int] | None) -> None:
        """Captions are asked for, and a worker of one side takes a batch; meanwhile, perhaps, somebody changes what
        writes them."""
        for style in range(len(self.styles)):
            self.ask(style)
        base, engine, in_service = self.bases[side], self.pairs[side].engine, BaseModels.in_service()
        able = {s.pk for s in self.styles if in_service == base or s.version_on(in_service) is None}
        expected: dict[int, MapperVersion | None] = {}
        process, caption = engine._process, engine.captioner.caption

        def happens(now: str) -> None:
            if change is not None and now == moment:
                what, number = change
                if what == "promote":
                    self.promote(number)
                else:
                    self.cut_over(number, leave_out=True)

        def processed(rows: Any) -> None:
            happens("claimed")
            expected.update({style.pk: style.version_on(base) for style in self.styles})
            process(rows)

        def decoded(*batch: Any) -> Any:
            happens("decoded")
            return caption(*batch)

        with (
            mock.patch.object(engine, "_process", processed),
            mock.patch.object(engine.captioner, "caption", decoded),
        ):
            engine.work()
        for written in Caption.objects.filter(status=Status.SUCCEEDED).exclude(pk__in=self.seen):
            assert written.style_id in able
            assert written.version == expected[written.style_id]
            self.seen.add(written.pk)

    @invariant()
    def no_caption_has_failed(self) -> None:
        assert not Caption.objects.exclude(failures=[]).exists()
        assert not Caption.objects.filter(status=Status.FAILED).exists()

    @invariant()
    def exactly_one_pair_serves_and_all_that_is_in_service_is_its(self) -> None:
        in_service = BaseModels.in_service()
        assert [base.status for base in self.bases].count(BaseModels.Status.IN_SERVICE) == 1
        assert {version.base_models for version in MapperVersion.objects.in_service()} <= {in_service}
        numbers = list(CutOver.objects.order_by("pk").values_list("number", flat=True))
        assert numbers == list(range(1, len(numbers) + 1))

    def teardown(self) -> None:
        while any([pair.engine.work() for pair in self.pairs]):
            pass
        self.no_caption_has_failed()
        assert not Caption.objects.unfinished().exists(), "workers of both live, so every caption is written"


def test_in_any_history_every_caption_is_written_by_the_right_models(
    today: Base, tomorrow: Base, tmp_path: Path, photo: bytes
) -> None:
    Changes.pairs, Changes.folder, Changes.photo = [today, tomorrow], tmp_path, photo
    run_state_machine_as_test(Changes, settings=hypothesis_settings(max_examples=20, stateful_step_count=20))
