"""The Adam toolkit for JAX: composable optax links, exact in every dtype."""

from importlib.metadata import version as _version

from adamx.family.adagrad import adagrad as adagrad
from adamx.family.adam import adam as adam
from adamx.family.adamax import adamax as adamax
from adamx.family.adamw import adamw as adamw
from adamx.family.amsgrad import amsgrad as amsgrad
from adamx.family.nadam import nadam as nadam
from adamx.family.nadamw import nadamw as nadamw
from adamx.family.rmsprop import rmsprop as rmsprop
from adamx.family.sgd import sgd as sgd
from adamx.ground.hyper import Derived as Derived
from adamx.ground.transform import Part as Part
from adamx.ground.transform import Rule as Rule
from adamx.ground.transform import Seen as Seen
from adamx.ground.transform import State as State
from adamx.ground.transform import Transformation as Transformation
from adamx.ground.transform import chain as chain
from adamx.ground.transform import lift as lift
from adamx.parts import rules as rules
from adamx.parts import schedules as schedules
from adamx.parts.links import adaptive_grad_clip as adaptive_grad_clip
from adamx.parts.links import add_decayed_weights as add_decayed_weights
from adamx.parts.links import bias_correct as bias_correct
from adamx.parts.links import clip as clip
from adamx.parts.links import clip_by_global_norm as clip_by_global_norm
from adamx.parts.links import clip_by_leaf_norm as clip_by_leaf_norm
from adamx.parts.links import scale_by_lr as scale_by_lr
from adamx.parts.links import scale_by_moments as scale_by_moments
from adamx.parts.moments import decayed_max as decayed_max
from adamx.parts.moments import difference as difference
from adamx.parts.moments import ema as ema
from adamx.parts.moments import mix as mix
from adamx.parts.moments import peak as peak
from adamx.parts.moments import trace as trace
from adamx.wrap.guard import NonFiniteGradients as NonFiniteGradients
from adamx.wrap.guard import SkipReport as SkipReport
from adamx.wrap.guard import SkipState as SkipState
from adamx.wrap.guard import skip_nonfinite as skip_nonfinite
from adamx.wrap.guard import skip_report as skip_report
from adamx.wrap.storage import store_state as store_state

__version__ = _version("adamx")
