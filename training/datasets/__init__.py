"""From files of captioned pictures to the examples of a style. Nothing here loads torch."""
