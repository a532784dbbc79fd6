"""What keeps people out of a page, as axe-core finds it."""

from __future__ import annotations

from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import Page

VIOLATIONS = """async () => (await axe.run({resultTypes: ["violations"]})).violations.flatMap(
    (found) => found.nodes.slice(0, 2).map((node) => `${found.id}: ${node.html.slice(0, 160)}`))"""

# Colours fade over. An animation that is cancelled meanwhile has ended too, though its promise is rejected.
FADED = "Promise.allSettled(document.getAnimations().map((one) => one.finished)).then(() => null)"


def violations(page: Page) -> list[str]:
    """Each rule that the page breaks, with the first two places, once its colours have faded over."""
    page.evaluate(FADED)
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE_SCRIPT)
    found: list[str] = page.evaluate(VIOLATIONS)
    return found
