"""The prose of docs/configuration.md around what the schema says; see node/config/explain.py."""

from __future__ import annotations

from collections.abc import Mapping

HEAD = """
# Configuration

<!-- Generated from the schema: `luminode config explain > docs/configuration.md`. Do not edit. -->

One file, `config.yaml`. The one at the top of the repository is annotated and runs as it is.

    luminode check                       # every fault at once: file:line:column, and what to do
    luminode config show                 # what is in force, defaults included, secrets masked
    luminode config explain rules.when   # this page, key by key
    luminode config schema               # JSON Schema, for editors
    luminode route PATH...               # which rule takes a series, and why

## How values are written

- YAML 1.2, every value as it is written: an AE title `NO`, `012` or `1e3` stays that. Truth values are
  `true` and `false`.
- Durations: `500ms` `30s` `5m` `2h` `7d`. Sizes: `500MB` `20GB` (powers of 1000), `512MiB` (of 1024).
- `${NAME}` reads the environment variable NAME, which must exist; `$${` stands for `${`. What comes from the
  environment is a secret: it is shown nowhere, neither by `luminode config show` nor in a fault, nor kept in
  the database.
- Relative paths start at the working directory of the node.
- Unknown keys, keys given twice and values left out are faults. A section left out has its defaults.
- Anchors and aliases work; YAML tags (`!x`) and merge keys (`<<`) do not.

## Edits while the node runs

The file is watched; SIGHUP reads it at once. An edit is validated as a whole. A good one takes effect for
every series that is not yet routed, and no association is dropped; queued work keeps the destination and
the settings it was routed with. A bad one is refused, with its faults in the log, and the last good
configuration stays in force. Every version that was in force is kept in the database with its digest and
its diff. The last good text also lies in the spool as `last-good.yaml`, for its owner only: a process of the
node that has to start again while the file is bad goes on with it, and one that finds an edit which waits for
the next start of the node leaves that alone. A node that is started on a bad file ends with exit status 78.
"""

CONDITIONS = """
`when: any` takes every series. Otherwise every line is a DICOM keyword (PS3.6) with a condition, and all
must hold. An attribute may have many values, in one instance and over the series: a condition holds if any
value fits, `not` if none does, so `not X` also holds where the attribute is absent. Numbers compare as
numbers, codes (VR CS) whatever their case, other text exactly, without padding. Ages (VR AS) may be written
`18Y`, `6M`, `90D`. A list is any of its items; with `not` before every item, none of them. `SOPClassUID`
may be named: `CTImageStorage`. Where a value begins with a word of this table, write `equals` before it.
""".strip()

OPERATORS: Mapping[str, str] = {
    "not": "no value is LOCALIZER; goes before every other condition too, and before a list: `not [A, B]`",
    "equals": "a value is the text `not for diagnosis`",
    "contains": "a value has CHEST in it, whatever its case",
    "matches": "the regular expression is found in a value. `(?i)` in front ignores case; without back "
    "references and look-around, so that no pattern can stop the node",
    "at most": "a value is a number up to 2.5",
    "at least": "a value is a number from 2.5",
    "between": "a value is a number from 1 to 2.5, both included",
    "present": "there is a value",
    "absent": "there is none",
}

ATTRIBUTES = """
Besides DICOM keywords there are `CallingAE` and `CalledAE`, the AE titles of all who sent the series, and
`InstanceCount`, the number of instances received. Rules see short attributes at the top level of the data
set. They never see what identifies a patient: names of persons, UIDs of the study, and @IDENTIFIERS@.
""".strip()

TAIL = """
## Faults

`luminode check` and a start with a bad file end with exit status 78 and one line per fault:

    config.yaml:26:12: rules.1.when.Modalty: "Modalty" is no DICOM keyword (did you mean Modality?)

Lines and columns count from 1, and so do rules. A syntax error hides the faults behind it, for what follows
it cannot be read; all others are told at once.
"""
