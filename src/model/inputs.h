/* What the blocks leave for their backward pass, where not all of it stays on the device (nb_pass_options.offloaded).
 * Private to src/model/.
 *
 * A slot has a ring of R buffers, R = L + 1 - offloaded, and the input of block i (L: the head's), with it what
 * NB_KEEP_ATTENTION keeps, lies in buffer i mod R. What blocks keep that keep everything, and down's inner values, stay
 * on the device.
 *
 *   forward     once block i has run, its values go to pinned memory, unless they are the last ones of their buffer, or
 *               no adapter at or below it wants them. Block i + R - 1, which writes the buffer next, waits for that, so
 *               the copy has R - 2 blocks' time.
 *   backward    once block i (or the head) is done, its buffer takes the values of block i - R, R - 1 blocks ahead of
 *               their use.
 *
 * With layer_major one ring serves n slots. Block i's input of slot j has number (i + 1) n - 1 - j and lies in buffer
 * number mod R, R = max((L + 1 - offloaded) n, n + 2): one that is read, the n after it, of which the last is written,
 * and one that is copied. The forward direction goes through the slots downwards, and so writes the numbers upwards; the
 * head and the blocks' backward direction go through them upwards, as sums over them want it, and read the numbers
 * downwards. That is a single slot's ring with n L blocks, each of which writes n numbers ahead, and a copy has
 * R - n - 1 blocks' time. Slots without a micro-batch keep their numbers, and nothing is there.
 *
 * Copies of both directions share one stream, so that a micro-batch's values reach pinned memory only after those
 * before them have left it again; events join it to the work on the device. The host touches none of it.
 *
 * Time. Over the link go 2 x tokens x hidden x bytes of an activation for a block and micro-batch, half of it in each
 * direction; with attention's output as much again. 8B (32 blocks, hidden 4096, bf16; 30 of them offloaded), a
 * micro-batch of 2048 tokens: 32 MiB a block, 1.01 GB in all, 40 ms at 25 GB/s, 20 ms at 50 GB/s. A block's copy in one
 * direction, 16 MiB, takes 0.67 or 0.34 ms and has at least a block's forward pass for it, 2 FLOP x 218 M weights x
 * 2048 tokens: 5.4 ms at 165 TFLOP/s, 1.1 ms at 800. Both grow with the tokens: the link is hidden while
 * 8192 bytes / link < 436 MFLOP / rate, that is up to 1.3 PFLOP/s at 25 GB/s. */
#ifndef NB_MODEL_INPUTS_H
#define NB_MODEL_INPUTS_H

#include "model/pass.h"

/* Beside one buffer for each slot that shares the ring, which is written in its turn, one is read and one is copied. */
enum { NB_INPUTS_AHEAD = 2 };

/* Of a ring. */
int nb_inputs_buffers(const struct nb_pass *pass);

/* Makes the rings' lists and, where something leaves, copy stream and events, and takes the pinned memory. Errors:
 * NB_MEMORY. */
nb_status nb_inputs_create(struct nb_pass *pass);

/* Notes in the slot's lists where on the device the input of block `index` (L: the head's) lies, and attention's output
 * if that is kept; takes what memory the buffer has not yet. Errors: NB_MEMORY. */
nb_status nb_inputs_place(struct nb_pass *pass, int slot, int index);

/* Waits for the copies. Before the device's arena is released, and after an error as well. */
void nb_inputs_destroy(struct nb_pass *pass);

/* What follows does nothing where everything stays. */

/* Before work is enqueued that writes the input of block `index`. */
nb_status nb_inputs_before_write(struct nb_pass *pass, int slot, int index);

/* After a block's forward pass. */
nb_status nb_inputs_save(struct nb_pass *pass, int slot, int index);

/* Before a block's backward pass. Errors: NB_USAGE if its values are gone: another's have taken their buffer. */
nb_status nb_inputs_before_read(struct nb_pass *pass, int slot, int index);

/* After a block's backward pass, or the head's (index L): its values are done with. Where slots share a ring, in their
 * order, up to inputs.active - 1. */
nb_status nb_inputs_after_read(struct nb_pass *pass, int slot, int index);

#endif
