"""resolve: files, imports, inheritance and `--set`, before anything is worked out."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from dskc.dsl import syntax as s
from dskc.dsl.diagnostics import Diagnostic, DiagnosticError, Diagnostics, Mark
from dskc.dsl.parser import parse, parse_entry
from dskc.dsl.source import Source, Span, read_source
from dskc.dsl.suggest import did_you_mean, looks_like

from ..program import Definition, ModelSource, Override, Program, Said, Scope, SectionSource
from ..sections import PLACEMENTS
from ..values import BlockDefinition

LIBRARY = Path(__file__).resolve().parents[2] / "dsl" / "std"
EDITION = 1
_DEFINES = re.compile(r"^(?:block|checkpoint|model|train|plan|serve)\s+([a-z_]\w*)", re.MULTILINE)


def resolve(source: Source, path: Path, problems: Diagnostics, settings: tuple[str, ...] = ()) -> Program:
    """The program that `source` (read from `path`) spells, with each of `settings` (`dims.D=512`) laid over it."""
    return _Resolver(problems).program(source, path, settings)


class _Resolver:
    def __init__(self, problems: Diagnostics) -> None:
        self.problems = problems
        self.scopes: dict[Path, Scope] = {}
        self.loading: list[Path] = []
        self.sources: list[Source] = []
        self.unknown: set[tuple[str, str]] = set()  # names that were reported, with what they should have been

    def program(self, source: Source, path: Path, settings: tuple[str, ...]) -> Program:
        scope, tree = self._load(source, path.resolve(), library=False)
        program = Program(source, scope, sources=self.sources)
        for item in tree.items:
            self._collect(item, scope, program)
        for text in settings:
            self._set(text, program)
        return program

    # --- files

    def _load(self, source: Source, path: Path, library: bool) -> tuple[Scope, s.File]:
        self.sources.append(source)
        self.loading.append(path)
        tree = parse(source, self.problems)
        lost = not tree.items or any(isinstance(item, s.Bad) for item in tree.items)
        scope = Scope(source, library, broken=(lost and not tree.complete) or tree.unsure)
        self.scopes[path] = scope
        self._edition(tree)
        for item in tree.items:
            if isinstance(item, s.Use):
                self._use(item, scope, path)
        for item in tree.items:
            self._define(item, scope)
        self.loading.pop()
        return scope, tree

    def _edition(self, tree: s.File) -> None:
        first = tree.items[0] if tree.items else None
        if isinstance(first, s.Edition):
            if first.number.value != EDITION:
                title = f"edition {first.number.text} is not one that this compiler knows"
                self._report("DSK0002", title, first.number.span, f"the newest is {EDITION}")
        elif tree.complete and not any(isinstance(item, s.Edition) for item in tree.items):
            at = first.span if first else Span(tree.source, 0, 0)
            place = Span(tree.source, at.start, min(at.end, at.start + len(at.text.split("\n")[0])))
            self._report("DSK0002", "a spec opens with its edition", place, f"write `dsk {EDITION}` above this")
        for item in tree.items[1:]:
            if isinstance(item, s.Edition):
                self._report("DSK0002", "a spec says its edition once, in its first line", item.span)

    def _define(self, item: s.Item, scope: Scope) -> None:
        if isinstance(item, s.Edition | s.Use | s.Bad):
            return
        name = item.name.text
        if name in scope.spans:
            first = "first here" if scope.owners.get(name) is scope else "imported here"
            self._defined_twice(item.name, scope.spans[name], first)
            return
        if isinstance(item, s.Model | s.Block | s.ExternBlock):
            self._parameters(item)
        scope.names[name] = BlockDefinition(item, scope) if isinstance(item, s.Block | s.ExternBlock) else item
        scope.owners[name] = scope
        scope.spans[name] = item.name.span

    def _defined_twice(self, name: s.Name, before: Span, first: str = "first here") -> None:
        self._report("DSK0102", f"`{name.text}` is defined twice", name.span, "again here", (Mark(before, first),))

    def _parameters(self, item: s.Model | s.Block | s.ExternBlock) -> None:
        """Parameters have names of their own, and so have a model's results."""
        names = [param.name for param in item.params]
        names += [result.name for result in item.results] if isinstance(item, s.Model) else []
        seen: dict[str, Span] = {}
        for name in names:
            if name.text in seen:
                self._defined_twice(name, seen[name.text])
            seen.setdefault(name.text, name.span)

    def _use(self, use: s.Use, scope: Scope, path: Path) -> None:
        other: Scope | None = None
        index: dict[str, Path] = {}
        if isinstance(use.library, s.String):
            other = self._file(use.library, path)
            if other is None:
                scope.lost.update(name.text for name in use.names)
                return
        else:
            library = use.library.text
            label = 'the library is `std`; a file of your own is named in quotes, `use "blocks.dsk" { ... }`'
            if library != "std":
                meant = did_you_mean(library, ("std",)) is not None
                label = "did you mean `std`?" if meant else label
                if not scope.broken:
                    self._report("DSK0103", f"there is no library `{library}`", use.library.span, label)
                if not (meant or scope.broken):
                    scope.lost.update(name.text for name in use.names)
                    return
            index = library_index()
        for name in use.names:
            self._import(name, use, index, other, scope)

    def _import(self, name: s.Name, use: s.Use, index: dict[str, Path], other: Scope | None, scope: Scope) -> None:
        asked = name.text
        owner = self._library_file(index[asked]) if asked in index else other
        if owner is None or asked not in owner.names:
            near = None
            known = list(index if other is None else other.names)
            if owner is None or not (owner.broken or owner.lost):
                near = self._not_there(name, known, use)
            if near is None:
                scope.lost.add(asked)
                return
            scope.lost.update(other_name for other_name in known if looks_like(name.text, other_name))
            asked = near  # the rest of the file most likely calls it so
            owner = self._library_file(index[near]) if near in index else other
        assert owner is not None
        before = scope.names.get(asked)
        if before is not None and before is not owner.names[asked]:
            self._defined_twice(name, scope.spans[asked])
        scope.names[asked] = owner.names[asked]
        scope.owners[asked] = owner.owners.get(asked, owner)
        scope.spans[asked] = name.span

    def _not_there(self, name: s.Name, names: list[str], use: s.Use) -> str | None:
        """Reports a name that a file lacks; the one that was probably meant."""
        where = "std" if isinstance(use.library, s.Name) else f'"{use.library.value}"'
        near = did_you_mean(name.text, names)
        label = f"did you mean `{near}`?" if near else ""
        notes = () if near or not names else (("help", f"it has {', '.join(sorted(names))}"),)
        self._report("DSK0104", f"{where} defines no `{name.text}`", name.span, label, notes=notes)
        return near

    def _library_file(self, path: Path) -> Scope:
        if path not in self.scopes:
            self._load(replace(read_source(path, f"std/{path.name}"), library=True), path, library=True)
        return self.scopes[path]

    def _file(self, name: s.String, user: Path) -> Scope | None:
        path = (user.parent / name.value).resolve()
        if path in self.loading:
            chain = " -> ".join(p.name for p in [*self.loading[self.loading.index(path) :], path])
            self._report("DSK0105", "these files import each other", name.span, chain)
            return None
        if path in self.scopes:
            return self.scopes[path]
        try:
            library = user.is_relative_to(LIBRARY)
            shown = f"std/{path.name}" if library else str(Path(name.span.source.path).parent / name.value)
            source = replace(read_source(path, shown), library=library)
        except DiagnosticError as error:
            for found in error.diagnostics:
                marks = (Mark(found.span, found.label),) if found.span.source.text else ()
                self.problems.add(replace(found, span=name.span, label="", marks=marks))
            return None
        return self._load(source, path, library)[0]

    # --- models and their recipes

    def _collect(self, item: s.Item, scope: Scope, program: Program) -> None:
        if isinstance(item, s.Model | s.DerivedModel):
            model = self._model(item, scope)
            if model is not None:
                program.models[item.name.text] = model
        elif isinstance(item, s.Train):
            self._section(item, scope, program.trains)
        elif isinstance(item, s.Plan):
            self._section(item, scope, program.plans)
        elif isinstance(item, s.Serve):
            self._section(item, scope, program.serves)

    def _model(self, item: s.Model | s.DerivedModel, scope: Scope, seen: tuple[str, ...] = ()) -> ModelSource | None:
        if isinstance(item, s.Model):
            model = ModelSource(item.name, item, scope, item.doc)
            for statement in item.body.statements:
                if isinstance(statement, s.Weights):
                    self._weights(statement, model, scope)
            return model
        found = self.find(item.base, scope, (s.Model, s.DerivedModel), "model")
        if found is None:
            return None
        base_item, base_scope = found
        assert isinstance(base_item, s.Model | s.DerivedModel)
        if item.name.text in seen:
            self._report("DSK0106", f"`{item.name.text}` comes from itself", item.base.span)
            return None
        base = self._model(base_item, base_scope, (*seen, item.name.text))
        if base is None:
            return None
        model = replace_model(base, item, scope)
        for statement in item.body.statements:
            self._override(statement, model, scope)
        return model

    def _override(self, statement: s.Statement, model: ModelSource, scope: Scope) -> None:
        if isinstance(statement, s.Dims):
            for entry in statement.section.entries:
                model.altered = model.altered or isinstance(entry, s.Bad)
                if isinstance(entry, s.Setting):
                    model.overrides.append(Override("dim", entry.key.text, None, entry.value, scope, entry.span))
        elif isinstance(statement, s.RepeatOverride):
            path = statement.name.text
            model.overrides.append(Override("repeat", path, None, statement.count, scope, statement.span))
        elif isinstance(statement, s.CallOverride):
            for argument in statement.arguments:
                if argument.label is None:
                    self._report("DSK0141", "an override names its argument", argument.span, "write `name: value`")
                    continue
                model.overrides.append(
                    Override("call", statement.path.text, argument.label.text, argument.value, scope, argument.span)
                )
        elif isinstance(statement, s.Require):
            model.requires.append((statement, scope))
        elif isinstance(statement, s.Weights):
            self._weights(statement, model, scope)
        elif isinstance(statement, s.Bad):
            model.altered = True  # what it requires may hold of what it was meant to be
        else:
            self._report(
                "DSK0142",
                "a model that comes from another holds overrides only",
                _first_line(statement.span),
                "not a statement of its own",
                notes=(("help", "overrides are `dims { ... }`, `repeat NAME COUNT`, `path.of.call(option: value)`"),),
            )

    def _weights(self, said: s.Weights, model: ModelSource, scope: Scope) -> None:
        if model.weights and model.weights_at is not None and model.weights_scope is scope:
            marks = (Mark(model.weights_at, "first here"),)
            self._report("DSK0108", "`weights` is said twice", said.span, "again here", marks)
        model.weights, model.weights_scope, model.weights_at = said.names, scope, said.span

    def _section(self, item: s.Train | s.Plan | s.Serve, scope: Scope, into: dict[str, SectionSource]) -> None:
        section = self.section(item, scope)
        if section is not None:
            into[item.name.text] = section

    def section(
        self, item: s.Train | s.Plan | s.Serve, scope: Scope, seen: tuple[str, ...] = ()
    ) -> SectionSource | None:
        """An item with everything it inherits."""
        target = item.train if isinstance(item, s.Plan) else item.model
        device = None if isinstance(item, s.Train) else item.device
        kind = type(item).__name__.lower()
        if item.base is None:
            section = SectionSource(item, scope, target, device)
        else:
            found = self.find(item.base, scope, (type(item),), kind)
            if found is None:
                return None
            if item.name.text in seen:
                self._report("DSK0106", f"`{item.name.text}` comes from itself", item.base.span)
                return None
            base_item, base_scope = found
            assert isinstance(base_item, s.Train | s.Plan | s.Serve)
            base = self.section(base_item, base_scope, (*seen, item.name.text))
            if base is None:
                return None
            section = replace(base, item=item, scope=scope, target=target or base.target, device=device or base.device)
            section.settings = dict(base.settings)
            section.placements = list(base.placements)
        if section.target is None:
            word = "for NAME" if isinstance(item, s.Plan) else "of MODEL"
            self._report("DSK0107", f"this {kind} does not say what it is for", item.name.span, f"write `{word}`")
            return None
        self._entries(item.section, "", section, scope)
        return section

    def _entries(self, body: s.Section, prefix: str, into: SectionSource, scope: Scope) -> None:
        said_here: dict[str, Span] = {}
        for entry in body.entries:
            if isinstance(entry, s.Bad):
                into.unread.add(prefix.removesuffix("."))
                continue
            key = f"{prefix}{entry.key.text}"
            if isinstance(entry, s.Placement):
                self._placement(entry, prefix, into, scope)
                continue
            if key in said_here and not isinstance(entry, s.Patch):
                marks = (Mark(said_here[key], "first here"),)
                self._report("DSK0108", f"`{key}` is said twice", entry.key.span, "again here", marks=marks)
                continue
            said_here[key] = entry.key.span
            if isinstance(entry, s.Subsection):
                into.sections[key] = entry.key.span
                self._entries(entry.section, f"{key}.", into, scope)
            elif isinstance(entry, s.Setting):
                into.settings[key] = Said(entry.key, entry.value, scope)
            else:
                self._patch(key, entry.key, entry.arguments, into, scope)

    def _placement(self, entry: s.Placement, prefix: str, into: SectionSource, scope: Scope) -> None:
        """Takes a placement in. One elsewhere is reported, or once for the section whose name is nearly right."""
        if isinstance(into.item, s.Plan) and prefix == f"{PLACEMENTS}.":
            into.placements.append((entry, scope))
            return
        text = " ".join(entry.span.text.split())
        label = f"it goes into a plan: `{PLACEMENTS} {{ {text} }}`"
        name = prefix.removesuffix(".")
        if name in into.sections and isinstance(into.item, s.Plan) and looks_like(name, PLACEMENTS):
            title, label = f"a plan has no key `{name}`", f"did you mean `{PLACEMENTS}`?"
            self._report("DSK0170", title, into.sections[name], label)
            return
        self._report("DSK0170", f"`{text}` does not stand in `{PLACEMENTS}`", entry.span, label)

    def _patch(
        self, key: str, at: s.Path, arguments: tuple[s.Argument, ...], into: SectionSource, scope: Scope
    ) -> None:
        if key not in into.settings:
            near = did_you_mean(key, into.settings)
            label = f"did you mean `{near}`?" if near else "nothing of this name is inherited"
            self._report("DSK0141", f"there is no `{key}` to change", at.span, label)
            return
        said = into.settings[key]
        into.settings[key] = replace(said, patches=(*said.patches, *((a, scope) for a in arguments)))

    def find(self, name: s.Name, scope: Scope, kinds: tuple[type, ...], what: str) -> tuple[Definition, Scope] | None:
        """The definition that a name stands for, or a diagnostic."""
        found = scope.names.get(name.text)
        if found is not None and isinstance(found, kinds):
            return found, scope.owners[name.text]
        if found is None and (scope.may_have(name.text) or (what, name.text) in self.unknown):
            return None
        self.unknown.add((what, name.text))
        candidates = [n for n, d in scope.names.items() if isinstance(d, kinds)]
        near = did_you_mean(name.text, candidates)
        label = f"did you mean `{near}`?" if near else ""
        notes = () if near or not candidates else (("help", f"there are {', '.join(candidates)}"),)
        marks = self._defined(near, scope, name.span)
        self._report("DSK0101", f"no {what} is called `{name.text}`", name.span, label, marks, notes)
        return None

    def _defined(self, name: str | None, scope: Scope, seen_from: Span) -> tuple[Mark, ...]:
        """Where a suggested name is defined, when that is elsewhere in the file."""
        place = scope.spans.get(name or "")
        if place is None or place.source is not seen_from.source or place.line == seen_from.line:
            return ()
        return (Mark(place, f"`{name}` is this"),)

    # --- --set

    def _set(self, text: str, program: Program) -> None:
        source = Source("--set", text)
        entry = parse_entry(source, quiet := Diagnostics())
        if any(found.code == "DSK0004" for found in quiet):
            self.problems.extend(quiet)
            return
        if not isinstance(entry, s.Setting) or entry.bare or quiet.has_errors:
            whole = Span(source, 0, len(text))
            self._report("DSK0140", "a setting is written `path.to.key=value`", whole, "such as `dims.D=512`")
            return
        head, *rest = (part.text for part in entry.key.parts)
        scope = Scope(source, names=program.scope.names, owners=program.scope.owners)
        sections = {**program.serves, **program.plans, **program.trains}
        if head in sections and rest:
            self._set_section(sections[head], ".".join(rest), entry, scope)
            return
        if head in program.models and rest:
            self._set_model(program.models[head], rest, entry, scope)
            return
        if not program.models:
            title = f"there is no `{entry.key.text}` to set"
            self._report("DSK0140", title, entry.key.span, "this file defines no model")
        for model in program.models.values():
            self._set_model(model, [head, *rest], entry, scope)

    def _set_section(self, section: SectionSource, key: str, entry: s.Setting, scope: Scope) -> None:
        owner, _, option = key.rpartition(".")
        if owner in section.settings:
            label = s.Name(entry.key.parts[-1].span, option)
            self._patch(owner, entry.key, (s.Argument(entry.span, label, entry.value),), section, scope)
        else:
            section.settings[key] = Said(entry.key, entry.value, scope)

    def _set_model(self, model: ModelSource, parts: list[str], entry: s.Setting, scope: Scope) -> None:
        model.altered = True
        if parts[0] == "dims" and len(parts) == 2:
            model.overrides.append(Override("dim", parts[1], None, entry.value, scope, entry.key.span))
        elif len(parts) == 1:
            model.overrides.append(Override("repeat", parts[0], None, entry.value, scope, entry.key.span))
        else:
            path = ".".join(parts[:-1])
            model.overrides.append(Override("call", path, parts[-1], entry.value, scope, entry.key.span))

    def _report(
        self,
        code: str,
        title: str,
        span: Span,
        label: str = "",
        marks: tuple[Mark, ...] = (),
        notes: tuple[tuple[str, str], ...] = (),
    ) -> None:
        self.problems.add(Diagnostic(code, title, span, label, marks, notes))


def replace_model(base: ModelSource, item: s.DerivedModel, scope: Scope) -> ModelSource:
    """`item` before its own overrides: what it inherits. Requirements are not inherited."""
    return ModelSource(
        item.name, base.base, base.scope, item.doc, list(base.overrides), [], base.weights, base.weights_scope
    )


def library_index() -> dict[str, Path]:
    """Which file of the standard library defines each name. Found without parsing: only files in use are parsed."""
    index: dict[str, Path] = {}
    for path in sorted(LIBRARY.glob("*.dsk")):
        for name in _DEFINES.findall(path.read_text(encoding="utf-8")):
            index[name] = path
    return index


def _first_line(span: Span) -> Span:
    return Span(span.source, span.start, span.start + len(span.text.split("\n")[0].rstrip()))
