"""For development: the interpreter, the SDK and what the transform imports, and the transform as data. `penstock plugin build --watch`
builds this once, and at each save only puts the sources into the file."""

import importlib.abc
import importlib.util
import json
import sys

from componentize_py_types import Err

# As it is when this is built: what it imports is in the component then, for there are no files later.
import app  # noqa: F401

from . import _said


class _Sources(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """The transform's modules, by name: the file and its text."""

    def __init__(self, files):
        self.modules = {}
        for file, text in files.items():
            parts = file.removesuffix(".py").split("/")
            is_package = parts[-1] == "__init__"
            name = ".".join(parts[:-1] if is_package else parts)
            self.modules[name] = file, text, is_package

    def find_spec(self, name, path=None, target=None):
        if name not in self.modules:
            return None
        file, _, is_package = self.modules[name]
        return importlib.util.spec_from_loader(name, self, origin=file, is_package=is_package)

    def exec_module(self, module):
        file, text, _ = self.modules[module.__name__]
        exec(compile(text, file, "exec"), module.__dict__)


class Development:
    def load(self, source):
        global app
        sources = _Sources(json.loads(source))
        for name in [*sources.modules, "app"]:
            sys.modules.pop(name, None)
        sys.meta_path.insert(0, sources)
        try:
            app = importlib.import_module("app")
            # Both are there, or it is said now.
            app.Transform, app.Description  # noqa: B018
        except Exception as error:
            raise Err(_said(error))


class Transform:
    def configure(self, settings):
        return app.Transform().configure(settings)

    def open_table(self, table):
        return app.Transform().open_table(table)

    def process(self, batch):
        return app.Transform().process(batch)


class Description:
    def describe(self):
        return app.Description().describe()
