"""Arrays by type and shape, for annotations: `Float[Tensor, "B K"]`, where K is the same in all of a call.

The test run checks them, by jaxtyping and beartype. Elsewhere annotations are text that nothing reads, and neither
package is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Float32, Float64, Int, Shaped, UInt8
else:
    try:
        from jaxtyping import Bool, Float, Float32, Float64, Int, Shaped, UInt8
    except ImportError:
        Bool = Float = Float32 = Float64 = Int = Shaped = UInt8 = Any

__all__ = ["Bool", "Float", "Float32", "Float64", "Int", "Shaped", "UInt8"]
