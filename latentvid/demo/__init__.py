"""The demo alone: its digits, text encoder, judge, scores and page."""
