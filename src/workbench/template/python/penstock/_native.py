"""What the contract's generated modules have, for where there is no host: in unit tests."""

import enum
import sys
from dataclasses import dataclass


class Err(Exception):
    def __init__(self, value):
        super().__init__(value)
        self.value = value


class types:
    Level = enum.Enum("Level", "ERROR WARN INFO DEBUG")

    @dataclass
    class Info:
        name: str
        version: str
        encoding: int

    @dataclass
    class Interest_Ignore:
        pass

    @dataclass
    class Interest_All:
        pass

    @dataclass
    class Interest_Columns:
        value: list


class host:
    @staticmethod
    def log(level, message):
        print(f"{level.name.lower()}: {message}", file=sys.stderr)


class description:
    SettingType = enum.Enum("SettingType", "TEXT INTEGER NUMBER BOOLEAN TEXTS TABLE")

    @dataclass
    class SettingAbout:
        name: str
        kind: object
        default: str | None
        required: bool
        doc: str
        choices: list

    @dataclass
    class About:
        sdk: str
        doc: str
        settings: list
        others: bool
