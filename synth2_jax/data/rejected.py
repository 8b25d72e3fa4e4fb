"""Why a picture or a caption is not used."""


class Rejected(Exception):
    """`reason` is in words that many examples share, `detail` of this one."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
