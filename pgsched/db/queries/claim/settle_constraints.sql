-- Has deferred constraints and triggers speak now, while it is known whose row they refuse.
set constraints all immediate
