"""Numbers written in three forms, as a small translation task with two targets.

    python -m benchmarks.number_words --output numbers.csv --numbers 3000 --highest 99999

Columns, tokens apart by spaces: `digits` (4 7 1), `english` (four hundred and seventy - one), `french` (quatre cent
soixante et onze, by the spelling of 1990 without hyphens). English and French name the same groups of digits in
other ways: French counts seventy to ninety-nine in twenties, and says neither "one hundred" nor "one thousand".
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import polars as pl
import typer

ENGLISH = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
ENGLISH_TENS = ["-", "-", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
FRENCH_SIMPLE = [
    "zéro",
    "un",
    "deux",
    "trois",
    "quatre",
    "cinq",
    "six",
    "sept",
    "huit",
    "neuf",
    "dix",
    "onze",
    "douze",
    "treize",
    "quatorze",
    "quinze",
    "seize",
]
FRENCH_WORDS = [*FRENCH_SIMPLE, "dix sept", "dix huit", "dix neuf"]
FRENCH_TENS = ["-", "-", "vingt", "trente", "quarante", "cinquante", "soixante"]
LARGEST = 999_999


def digits(number: int) -> str:
    """Write a number from 0 to 999,999 as its digits."""
    return " ".join(str(number))


def english(number: int) -> str:
    """Write a number from 0 to 999,999 in English words, with the hyphen as a word of its own."""
    if number >= 1000:
        thousands, rest = divmod(number, 1000)
        joint = " and " if 0 < rest < 100 else " "
        return f"{english(thousands)} thousand" + (f"{joint}{english(rest)}" if rest else "")
    if number >= 100:
        hundreds, rest = divmod(number, 100)
        return f"{ENGLISH[hundreds]} hundred" + (f" and {english(rest)}" if rest else "")
    if number < 20:
        return ENGLISH[number]
    tens, ones = divmod(number, 10)
    return ENGLISH_TENS[tens] + (f" - {ENGLISH[ones]}" if ones else "")


def french(number: int) -> str:
    """Write a number from 0 to 999,999 in French words."""
    if number >= 1000:
        thousands, rest = divmod(number, 1000)
        # Before mille, cent and vingt stay without their s.
        named = "" if thousands == 1 else french(thousands).replace("cents", "cent").replace("vingts", "vingt") + " "
        return f"{named}mille" + (f" {french(rest)}" if rest else "")
    if number >= 100:
        hundreds, rest = divmod(number, 100)
        named = "" if hundreds == 1 else f"{FRENCH_WORDS[hundreds]} "
        return f"{named}cent" + ("s" if hundreds > 1 and not rest else "") + (f" {french(rest)}" if rest else "")
    return _french_below_100(number)


def _french_below_100(number: int) -> str:
    if number < 20:
        return FRENCH_WORDS[number]
    if number == 80:
        return "quatre vingts"
    if number > 80:
        return f"quatre vingt {FRENCH_WORDS[number - 80]}"
    tens = min(number // 10, 6)
    rest = number - 10 * tens
    if not rest:
        return FRENCH_TENS[tens]
    joint = " et " if rest in {1, 11} else " "
    return f"{FRENCH_TENS[tens]}{joint}{FRENCH_WORDS[rest]}"


def table(numbers: int, highest: int, seed: int) -> pl.DataFrame:
    """Draw different numbers from 0 to the highest, and write each in the three forms."""
    drawn = np.random.default_rng(seed).choice(highest + 1, size=numbers, replace=False).tolist()
    forms = {"digits": digits, "english": english, "french": french}
    return pl.DataFrame({name: [write(number) for number in drawn] for name, write in forms.items()})


def main(
    output: Annotated[Path, typer.Option(help="CSV file to write.")],
    numbers: Annotated[int, typer.Option(min=1)] = 3000,
    highest: Annotated[int, typer.Option(min=0, max=LARGEST)] = 99_999,
    seed: int = 1,
) -> None:
    """Write a table of numbers in three forms."""
    if numbers > highest + 1:
        raise typer.BadParameter(f"{numbers} different numbers from 0 to {highest} are asked for: raise --highest")
    table(numbers, highest, seed).write_csv(output)
    typer.echo(f"{output}: {numbers:,} numbers")


if __name__ == "__main__":
    typer.run(main)
