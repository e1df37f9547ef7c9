from .api import Run as Run
from .api import load_run as load_run
from .api import run_sweep as run_sweep
from .config.sweep import SweepConfig as SweepConfig
from .config.yaml import load_sweep_config as load_sweep_config
from .errors import StorageError as StorageError
from .errors import SweepError as SweepError
from .errors import UserError as UserError
