"""Check deploy/kubernetes.yaml against the definitions of Dask's operator: ``python deploy/check_kubernetes.py``.

Needs ``pip install dask-kubernetes jsonschema pyyaml``, and no Kubernetes. Kubernetes drops what a definition does not
know without a word; here that is an error, so that a misspelt field is found.
"""

from __future__ import annotations

import sys
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import yaml

CRDS = "operator/deployment/helm/dask-kubernetes-operator/crds"


def strict(schema: Any) -> Any:
    """Return a definition that refuses what it does not know."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: strict(value) for key, value in schema.items()}
    open_ended = "additionalProperties" in schema or schema.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(schema.get("properties"), dict) and "type" in schema and not open_ended:
        found["additionalProperties"] = False
    if schema.get("x-kubernetes-int-or-string"):
        found.pop("type", None)
    return found


def faults(document: Any) -> list[str]:
    """Return what is wrong with an object of the operator."""
    kind = str(document["kind"]).lower()
    text = resources.files("dask_kubernetes").joinpath(CRDS, f"{kind}.yaml").read_text(encoding="utf-8")
    versions = yaml.safe_load(text)["spec"]["versions"]
    served = {version["name"]: version["schema"]["openAPIV3Schema"] for version in versions}
    schema = served[str(document["apiVersion"]).rpartition("/")[2]]
    found = jsonschema.Draft7Validator(strict(schema["properties"]["spec"])).iter_errors(document["spec"])
    return [f"{'/'.join(map(str, fault.absolute_path))}: {fault.message}" for fault in found]


def main() -> int:
    """Return 0 if nothing is wrong."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("kubernetes.yaml")
    wrong = 0
    for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
        for fault in faults(document):
            sys.stdout.write(f"{path}: {document['kind']}: {fault}\n")
            wrong += 1
    sys.stdout.write(f"{path}: {wrong} faults\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
