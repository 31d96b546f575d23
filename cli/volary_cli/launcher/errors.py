"""What may keep a mesh from running; every text names the cause and says what to do.

LaunchError
├── ConfigurationError   a key of the environment or an option is broken
├── PortTakenError       a port that a component needs is somebody else's
├── DiskFullError        there is no room for the data of a mesh
├── MeshRunsError        another supervisor holds the data folder
├── EngineError          an engine cannot be found, prepared or started
└── StartError           a component does not become ready
"""

from __future__ import annotations


class LaunchError(Exception):
    """A mesh cannot run."""


class ConfigurationError(LaunchError):
    """A key of the environment or an option is broken; the text names it."""


class PortTakenError(LaunchError):
    """A port that a component needs is somebody else's."""


class DiskFullError(LaunchError):
    """There is no room for the data of a mesh."""


class MeshRunsError(LaunchError):
    """Another supervisor holds the data folder."""


class EngineError(LaunchError):
    """An engine cannot be found, prepared or started."""


class StartError(LaunchError):
    """A component does not become ready; the text shows the end of its log."""
