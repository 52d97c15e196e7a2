"""What a script says when it refuses."""


def refused(result: tuple[int, str, str]) -> str:
    """The message of a refusal (status, stdout, stderr): status 2, and one line that begins with `error:`."""
    status, _, said = result
    errors = [line for line in said.splitlines() if line.startswith("error:")]
    assert status == 2 and len(errors) == 1 and "Traceback" not in said, said
    return errors[0]
