"""Rewinding: start from what the original was before its training ended."""

from unlearn_jax.methods.preparation import Context, Prepared


def prepare(context: Context) -> Prepared | None:
    """Prepare the start of a phase with `rewind`: a checkpoint of the original's own training.

    What is learned of all images comes early in training, what is memorised of single ones late; a
    phase on retain rows then does the rest of the schedule, in less. Rewinding is known from
    pruning (Frankle et al. 2020, arXiv 1912.05671). The checkpoint has seen the forget images.
    Cost: none; disk, since `checkpoint.keep` must keep earlier checkpoints in the original's run.

    Raises:
      UserError: none was kept within a tenth of the original's training of that share of it.
    """
    if not context.phase.rewind or context.resumed:  # then the state has started from it
        return None
    return Prepared(params=context.earlier(context.phase.rewind))
