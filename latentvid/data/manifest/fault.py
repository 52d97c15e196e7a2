"""What is wrong with a manifest as a whole."""

from ...errors import UserError


class ManifestError(UserError):
    """A manifest that cannot be used as a whole; the message names it and the fix."""
