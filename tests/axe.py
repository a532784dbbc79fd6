"""What keeps people out of a page, as axe-core finds it."""

from __future__ import annotations

from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import Page

VIOLATIONS = """async (rules) => (await axe.run({resultTypes: ["violations"], ...(rules && {runOnly: rules})}))
    .violations.flatMap((found) => found.nodes.slice(0, 2).map((node) => `${found.id}: ${node.html.slice(0, 160)}`))"""
OF_COLOURS = ["color-contrast", "link-in-text-block"]

# Colours fade over. An animation that is cancelled meanwhile has ended too, though its promise is rejected.
FADED = "Promise.allSettled(document.getAnimations().map((one) => one.finished)).then(() => null)"


def violations(page: Page, rules: list[str] | None = None) -> list[str]:
    """Each rule that the page breaks, with the first two places, once its colours have faded over.

    Args:
        rules: those that count; None: all do.
    """
    page.evaluate(FADED)
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE_SCRIPT)
    found: list[str] = page.evaluate(VIOLATIONS, rules)
    return found
