"""The one ledger: pages, blocks, references, ladder, victims, admission. The runtime is its batch of one lane."""

from pikv_runtime.ledger.cancel import cancel
from pikv_runtime.ledger.commit import advance, also_chosen, commit, filled_pages, tag_page
from pikv_runtime.ledger.control import apply_control
from pikv_runtime.ledger.integrity import IntegrityError, check_integrity
from pikv_runtime.ledger.observe import due, observe
from pikv_runtime.ledger.pricing import price
from pikv_runtime.ledger.readset import select
from pikv_runtime.ledger.schedule import plan
from pikv_runtime.ledger.setup import (
    Shape,
    build,
    clear,
    close,
    copy_requests,
    load_requests,
    observations,
    pages_needed,
    request_charges,
    set_classes,
)
from pikv_runtime.ledger.state import CODECS, NO_CAP, Event, Ledger, Price, Status, Tally
from pikv_runtime.ledger.telemetry import write_telemetry

__all__ = [
    "CODECS", "NO_CAP", "Event", "IntegrityError", "Ledger", "Price", "Shape", "Status", "Tally", "advance",
    "also_chosen", "apply_control", "build", "cancel", "check_integrity", "clear", "close", "commit", "copy_requests",
    "due", "filled_pages", "load_requests", "observations", "observe", "pages_needed", "plan", "price",
    "request_charges", "select", "set_classes", "tag_page", "write_telemetry",
]  # fmt: skip
