"""Jobs at limits, and what a pass claims of them."""

from support.workers import Parts

END = "update pgsched.runs set status = 'succeeded', finished_at = now() where id = %s"
# Jobs of one entrypoint: of key $1, so many, with a priority.
JOBS = """
    select pgsched.enqueue('job', jsonb_build_object('tenant', %s::text), priority => %s) from generate_series(1, %s)
"""


async def claims(parts: Parts) -> int:
    return await parts.dispatcher.claim_pass()
