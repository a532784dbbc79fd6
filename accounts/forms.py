"""The forms of people's accounts."""

from __future__ import annotations

from datetime import timedelta

from django import forms

from captioner.api.permissions import Scope

LIFETIMES = {"30": "for 30 days", "90": "for 90 days", "365": "for a year", "": "until it is deleted"}


class TokenForm(forms.Form):
    """What a new token is for."""

    name = forms.CharField(max_length=80, label="What is it for?")
    scopes = forms.MultipleChoiceField(
        choices=Scope.choices, widget=forms.CheckboxSelectMultiple, label="What may a program do with it?"
    )
    days = forms.ChoiceField(choices=list(LIFETIMES.items()), required=False, label="How long is it good?")

    def lifetime(self) -> timedelta | None:
        """How long the token is to live; None for ever."""
        days = self.cleaned_data["days"]
        return timedelta(days=int(days)) if days else None
