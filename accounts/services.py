"""What people can do about their own accounts, one function each."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from django.db.models import Q, QuerySet
from django.utils import timezone

from accounts.models import Token
from captioner.api.permissions import Scope
from captioner.errors import Refused

MOST_TOKENS = 20
SELDOM = timedelta(minutes=1)  # between two writes of when a token was used last


def tokens_of(user: Any) -> QuerySet[Token]:
    """The user's tokens, the newest first, with those that have expired."""
    tokens: QuerySet[Token] = Token.objects.filter(user=user)
    return tokens


def make_token(
    user: Any, *, name: str, scopes: Sequence[str] = tuple(Scope.values), lifetime: timedelta | None = None
) -> tuple[Token, str]:
    """Create a token.

    Args:
        name: what it is for.
        scopes: what a program may do with it.
        lifetime: after which it is refused; None for one that never expires.

    Returns:
        It, and its text, of which only a hash is kept.

    Raises:
        Refused: too many are there, or it would be good for nothing.
    """
    if tokens_of(user).count() >= MOST_TOKENS:
        raise Refused("too_many_tokens", f"you have {MOST_TOKENS} tokens, the maximum; delete one first", status=409)
    unknown = set(scopes) - set(Scope.values)
    if unknown or not scopes:
        raise Refused("invalid_scopes", f"choose at least one of {', '.join(Scope.values)}", status=422)
    made: tuple[Token, str] = Token.objects.create(user, lifetime, name=name.strip()[:80], scopes=list(scopes))
    return made


def delete_token(user: Any, digest: str) -> bool:
    """Delete one of the user's tokens; programs that use it are refused from then on.

    Returns:
        Whether there was such a token.
    """
    return bool(tokens_of(user).filter(digest=digest).delete()[0])


def end_tokens(user: Any) -> None:
    """Delete all of the user's tokens."""
    tokens_of(user).delete()


def note_use(token: Token) -> None:
    """Keep when a token was used, to the minute."""
    now = timezone.now()
    seldom = Q(last_used_at=None) | Q(last_used_at__lt=now - SELDOM)
    Token.objects.filter(seldom, pk=token.pk).update(last_used_at=now)
