"""What can go wrong between this terminal and the API."""


class ClientError(Exception):
    """One line for the person at the terminal: what happened, and what to do."""


class ApiError(ClientError):
    """The API refused. `code` is its stable code, empty where the answer wasn't a problem document."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code


class LostError(ClientError):
    """No answer at all, or one that broke off."""
