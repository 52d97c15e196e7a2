"""How well clips fit their captions."""
