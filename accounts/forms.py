"""The forms of people's accounts."""

from __future__ import annotations

from datetime import timedelta

from django import forms

from captioner.api.permissions import Scope

LIFETIMES = {"30": "for 30 days", "90": "for 90 days", "365": "for a year", "": "no expiry"}


class TokenForm(forms.Form):
    """What a new token is for."""

    name = forms.CharField(max_length=80, label="What is it for?")
    scopes = forms.MultipleChoiceField(
        choices=Scope.choices,
        widget=forms.CheckboxSelectMultiple,
        label="What should a program be allowed to do with it?",
    )
    days = forms.ChoiceField(choices=list(LIFETIMES.items()), required=False, label="When should it expire?")

    def lifetime(self) -> timedelta | None:
        """How long the token is to live; None for ever."""
        days = self.cleaned_data["days"]
        return timedelta(days=int(days)) if days else None
