"""What methods are tuned on that must know the subjects beforehand: the 36 WinoBias professions, lower case, no article."""

from __future__ import annotations

PROFESSIONS = (
    *("analyst", "assistant", "attendant", "baker", "carpenter", "cashier", "ceo", "cleaner", "clerk", "construction worker", "cook"),
    *("counselor", "designer", "developer", "doctor", "driver", "farmer", "guard", "hairdresser", "housekeeper", "janitor", "laborer"),
    *("lawyer", "librarian", "manager", "mechanic", "nurse", "physician", "receptionist", "salesperson", "secretary", "sheriff"),
    *("supervisor", "tailor", "teacher", "writer"),
)
