"""Pictures that are not photos: blank ones, noise, screenshots, charts, drawings. Each function draws one at random and
returns it with the facts its captions are built from (`recipes/drawing_captions.py`).

Only Pillow and the font it brings are used, and all chance comes from the generator given: the same state of it draws
the same picture."""

from collections.abc import Callable
from random import Random

from recipes.drawings.canvas import Drawn, Facts
from recipes.drawings.charts import bar_chart, line_chart, pie_chart
from recipes.drawings.plain import blank, blur, dark, gradient, noise, overexposed, pattern
from recipes.drawings.screens import chat, code_editor, form, table, terminal, text_page
from recipes.drawings.sites import dashboard, item_list, picture_grid, picture_page, web_page
from recipes.drawings.sketches import drawing, drawing_pair, shapes
from recipes.drawings.things import empty_frame, receipt, sign, square_code, street_map

__all__ = ["KINDS", "Facts"]

KINDS: dict[str, Callable[[Random], Drawn]] = {
    function.__name__: function
    for function in (
        blank, gradient, noise, blur, dark, overexposed, pattern, text_page, code_editor, terminal, chat, form, table,
        web_page, dashboard, picture_grid, item_list, picture_page, bar_chart, line_chart, pie_chart, drawing,
        drawing_pair, shapes, receipt, sign, square_code, street_map, empty_frame,
    )
}  # fmt: skip
