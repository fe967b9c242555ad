"""A dozen documents each in the fields that lm_eval's arc_easy and piqa read; written for these tests."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_ARC = [
    ("What falls from clouds when it is cold?", ["snow", "sand", "bread", "glass"], "A"),
    ("Which of these is a map used for?", ["to cook", "to find a way", "to sleep", "to sing"], "B"),
    ("What do rivers carry to the sea?", ["lamps", "chairs", "water", "letters"], "C"),
    ("Which of these is baked in an oven?", ["a stone", "a cloud", "a river", "bread"], "D"),
    ("What keeps a tree standing?", ["its roots", "its shadow", "its fruit", "its birds"], "A"),
    ("Which of these gives light at night?", ["a shoe", "the moon", "a spoon", "a hat"], "B"),
    ("What is a stone made of?", ["milk", "wool", "minerals", "honey"], "C"),
    ("Which animal lives in water?", ["a horse", "a hen", "a goat", "a trout"], "D"),
    ("What does a thermometer measure?", ["temperature", "weight", "time", "length"], "A"),
    ("Which of these melts in the sun?", ["iron", "ice", "brick", "slate"], "B"),
    ("What do plants take in through their leaves?", ["sand", "salt", "light", "iron"], "C"),
    ("Which of these is not alive?", ["an oak", "a fox", "a fern", "a pebble"], "D"),
]
_PIQA = [
    ("Keep bread fresh", "Put it into a closed box.", "Put it into a bowl of water.", 0),
    ("Dry wet shoes", "Fill them with stones.", "Fill them with paper.", 1),
    ("Open a jar that is stuck", "Warm its lid.", "Freeze its label.", 0),
    ("Sharpen a pencil", "Rub it with butter.", "Turn it in a sharpener.", 1),
    ("Put out a candle", "Cover its flame.", "Cover its shadow.", 0),
    ("Find north", "Look at a spoon.", "Look at a compass.", 1),
    ("Carry soup", "Use a bowl.", "Use a net.", 0),
    ("Hang up a coat", "Lay it under the door.", "Put it on a hook.", 1),
    ("Cut a loaf", "Use a knife with teeth.", "Use a piece of chalk.", 0),
    ("Water a plant", "Sing to its pot.", "Pour water on its soil.", 1),
    ("Warm cold hands", "Rub them together.", "Hold a stone from the river.", 0),
    ("Mark a page", "Fold the lamp.", "Lay a ribbon into the book.", 1),
]


def arc_documents() -> list[dict[str, Any]]:
    """In the fields of arc_easy."""
    return [
        {"question": question, "choices": {"text": texts, "label": ["A", "B", "C", "D"]}, "answerKey": answer}
        for question, texts, answer in _ARC
    ]


def piqa_documents() -> list[dict[str, Any]]:
    """In the fields of piqa."""
    return [{"goal": goal, "sol1": first, "sol2": second, "label": label} for goal, first, second, label in _PIQA]


def gsm8k_documents() -> list[dict[str, Any]]:
    """In the fields of gsm8k."""
    sums = [(3, 4), (12, 5), (8, 8), (20, 1), (7, 6)]
    return [
        {"question": f"A shelf holds {a} books and {b} maps. How many is that?", "answer": f"{a} + {b}.\n#### {a + b}"}
        for a, b in sums
    ]


def mmlu_documents() -> list[dict[str, Any]]:
    """In the fields of mmlu's subjects."""
    return [
        {"question": question, "choices": texts, "answer": "ABCD".index(answer), "subject": "anything"}
        for question, texts, answer in _ARC
    ]


def write_documents(path: Path, documents: Iterable[dict[str, Any]]) -> Path:
    """As JSONL."""
    path.write_text("".join(json.dumps(document) + "\n" for document in documents), encoding="utf-8")
    return path


def write_task_files(folder: Path) -> dict[str, str]:
    """Both files, as `evaluate.task_files` names them."""
    return {
        "arc_easy": str(write_documents(folder / "arc_easy.jsonl", arc_documents())),
        "piqa": str(write_documents(folder / "piqa.jsonl", piqa_documents())),
    }
