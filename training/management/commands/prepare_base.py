"""`./run manage prepare_base`: prepare other base models, and show how far that is."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from captioner import services as captioner_services
from captioner.management.arguments import add_user, named_user
from captioner.management.command import SiteCommand
from captioner.models import BaseModels
from training import services


class Command(SiteCommand):
    """Prepare other base models: once workers have loaded them, every style in service is retrained for them, while
    captions go on with those in service. Called again, it goes on from there and shows how far it is."""

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--encoder", metavar="NAME", help="as CLIPCAP_ENCODER names it, such as ViT-L-14/openai")
        parser.add_argument(
            "--language-model", metavar="NAME", help="as CLIPCAP_LANGUAGE_MODEL names it, such as gpt2-large"
        )
        parser.add_argument("--base", type=int, metavar="N", help="instead of names: the number of those on record")
        parser.add_argument("--show", action="store_true", help="only show how far it is")
        parser.add_argument("--cancel", action="store_true", help="stop it; what is done is kept")
        add_user(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        person = named_user(options["user"])
        if options["base"] is not None:
            base = captioner_services.find_base_models(options["base"])
            if options["cancel"]:
                services.cancel_preparation(base=base, person=person)
            elif not options["show"]:
                services.resume_preparation(base=base, person=person)
        elif options["show"] or options["cancel"]:
            raise CommandError("say which: --base N")
        else:
            names = {name: options[name] or "" for name in ("encoder", "language_model")}
            base = services.prepare_base(**names, person=person)
        self._show(base)

    def _show(self, base: BaseModels) -> None:
        move = services.progress(base)
        self.stdout.write(f"{base.pk}: {base}: {base.status.label.lower()}")
        for queue, count in move.workers.items():
            if not count:
                self.stdout.write(f"no worker has loaded them; start one: ./run worker {queue} --base {base.pk}")
        self.stdout.write(f"{move.embedded:,} of {move.photos:,} photos of the datasets are embedded")
        for style in move.styles:
            self.stdout.write(f"{style.style.slug}: {style.today} -> {style.new or 'none yet'}: {style.detail}")
        if not move.missing and not base.is_in_service:
            self.stdout.write(f"every style has a version on them: ./run manage cut_over {base.pk}")
