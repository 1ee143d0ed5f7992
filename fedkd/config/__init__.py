"""What a user can write down: scenarios, server and client configurations, and a client's privacy policy.

Every model refuses unknown keys, names the nearest right one, and points at file and line.
"""

from fedkd.config.answers import (
    AGGREGATES,
    AUGMENT,
    CODEC,
    FEW_IN_A_SUM,
    FEWEST_IN_A_SUM,
    Aggregate,
    Mechanism,
    Rule,
)
from fedkd.config.base import NAME, Model
from fedkd.config.client import ClientConfig, Device, Gate, Live, RelayConfig
from fedkd.config.continual import WEIGHTS, Continual, Keeping, Stream
from fedkd.config.data import FEATURES, Column, Data, Features, Image, Partition, Poison, Proxy
from fedkd.config.files import KINDS, default_simulation, dump, keys, load, mapping, setting
from fedkd.config.learning import (
    ARCHITECTURES,
    AnyTerm,
    Architecture,
    Distil,
    DistilTerms,
    EarlierTerm,
    Student,
    StudentTerms,
    Teacher,
    TeacherTerms,
    Training,
)
from fedkd.config.policy import Policy, Privacy, Protection
from fedkd.config.scenario import Baseline, BaselineName, Scenario
from fedkd.config.server import Federation, ServerConfig

__all__ = [
    "AGGREGATES",
    "ARCHITECTURES",
    "AUGMENT",
    "CODEC",
    "FEATURES",
    "FEWEST_IN_A_SUM",
    "FEW_IN_A_SUM",
    "KINDS",
    "NAME",
    "WEIGHTS",
    "Aggregate",
    "AnyTerm",
    "Architecture",
    "Baseline",
    "BaselineName",
    "ClientConfig",
    "Column",
    "Continual",
    "Data",
    "Device",
    "Distil",
    "DistilTerms",
    "EarlierTerm",
    "Features",
    "Federation",
    "Gate",
    "Image",
    "Keeping",
    "Live",
    "Mechanism",
    "Model",
    "Partition",
    "Poison",
    "Policy",
    "Privacy",
    "Protection",
    "Proxy",
    "RelayConfig",
    "Rule",
    "Scenario",
    "ServerConfig",
    "Stream",
    "Student",
    "StudentTerms",
    "Teacher",
    "TeacherTerms",
    "Training",
    "default_simulation",
    "dump",
    "keys",
    "load",
    "mapping",
    "setting",
]
