"""The captioning service: images, styles, mapper versions, promotions, captions. Knows nothing of the app that
trains them."""
