"""Row model without second derivatives of the law, for laws of many parameters.

The Hessian of the objective is replaced by its Gauss-Newton majorant, so `scalelab.fit.newton`
takes the steps of Levenberg and Marquardt. A step costs p derivatives per row instead of p^2. Near
a minimum with small residuals both converge alike.
"""

from __future__ import annotations

import numpy as np

from scalelab.arrays import FloatArray
from scalelab.fit.penalty import Penalty
from scalelab.fit.row_model import Expansion, GeneralRowModel, Rows
from scalelab.theory.laws.jet import Jet


class GaussNewtonModel(GeneralRowModel):
    """Row model of any form whose expansions have the majorant as the Hessian."""

    def _expand(self, eta: FloatArray, rows: Rows, penalty: Penalty) -> Expansion:
        s, p = eta.shape
        out = self.law.evaluate(Jet.variables(eta, order=1), self.columns)
        if rows.is_log:
            out = np.log(out)
        r = np.broadcast_to(out.value, (s, self.n_rows)) - rows.compared
        value, first, _, majorant = penalty.parts(r, rows.weight)
        jacobian = np.zeros((s, p, self.n_rows))
        for j, part in out.grad.items():
            jacobian[:, j] = part
        product = np.matmul(jacobian * majorant[:, None, :], jacobian.transpose(0, 2, 1))
        return Expansion(
            value=value.sum(axis=1),
            gradient=np.matmul(jacobian, first[:, :, None])[:, :, 0],
            hessian=product,
            majorant=product,
        )
