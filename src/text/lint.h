/* Refuses data that would train a model wrongly, with the row shown, instead of training on it.
 *
 * One rotten row in a large file is dropped and counted; what points at a wrong setting is an error:
 *   error    no row at all; no usable row left; any row without an answer; more than a tenth of a file's rows (any
 *            row, in a file of fewer than 20) with ids outside the vocabulary, labels that do not fit, or fields that
 *            do not; a conversation, alpaca or completion file where no row trains an end token; a second bos after
 *            the first in any row that is rendered here
 *   warning  fewer such rows: dropped, with their count and the first one's line and text; rows longer than
 *            sequence_len; rows of tokens that begin with two bos, or of which none trains eos */
#ifndef NB_TEXT_LINT_H
#define NB_TEXT_LINT_H

#include "base/status.h"

struct nb_chat_template;
struct nb_dataset;
struct nb_tokenizer;

/* Checks a data set; warnings go to nb_warn. `tokenizer` and `chat_template` as the set was read with, or NULL.
 * Errors: NB_FORMAT, one line with file, line, what is wrong, the text around it and what to do. */
nb_status nb_lint(const struct nb_dataset *dataset, const struct nb_tokenizer *tokenizer,
                  const struct nb_chat_template *chat_template);

#endif
