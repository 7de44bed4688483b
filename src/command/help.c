#include <string.h>

#include "command/command.h"
#include "config/config.h"
#include "device/cuda/cuda.h"
#include "device/device.h"

void nb_help_screen(FILE *out)
{
    fputs("nibble fine-tunes large language models in 4 bits (QLoRA): one native program, no Python.\n"
          "In: a Hugging Face or GGUF model, JSONL data, a YAML file with Axolotl's keys. Out: a PEFT adapter.\n"
          "\n"
          "Try first:\n"
          "  nibble plan CONFIG.yml             what a run needs, to the byte, before it starts\n"
          "  nibble train CONFIG.yml            train; writes the adapter to its output_dir\n"
          "  nibble chat MODEL --adapter DIR    talk to the result\n"
          "\n"
          "All verbs: nibble help.   One verb: nibble help VERB.   The YAML file's keys: nibble help config.\n"
          "No config yet? configs/quickstart.yml has every line commented, and tools/quickstart runs it.\n",
          out);
}

void nb_help_commands(FILE *out)
{
    fputs("usage: nibble VERB [ARGUMENT] [--option value] ...\n\n", out);
    for (size_t i = 0; nb_commands[i]; i++)
        fprintf(out, "  %-9s %-8s %s\n", nb_commands[i]->name, nb_commands[i]->argument ? nb_commands[i]->argument : "",
                nb_commands[i]->summary);
    fputs("\n"
          "  help VERB          a verb's options\n"
          "  help config [KEY]  the keys of the YAML file and of --set\n"
          "  help manual        the manual page, nibble(1), in roff\n"
          "  --version          version, matrix library, instruction set, GPU\n"
          "\n"
          "Exit status: 0 done, 1 failed, 2 wrong usage or config, 130 interrupted after saving.\n"
          "Data goes to standard output, everything else to standard error.\n",
          out);
}

static void print_usage(const struct nb_command *command, FILE *out)
{
    fprintf(out, "nibble %s", command->name);
    if (command->argument)
        fprintf(out, command->argument_optional ? " [%s]" : " %s", command->argument);
    if (command->second)
        fprintf(out, " [%s]", command->second);
    for (int i = 0; command->options && command->options[i].name; i++) {
        const struct nb_option *option = &command->options[i];
        if (option->type == NB_OPTION_FLAG)
            fprintf(out, " [--%s]", option->name);
        else if (option->optional_value)
            fprintf(out, " [--%s [%s]]", option->name, option->value);
        else
            fprintf(out, " [--%s %s]%s", option->name, option->value, option->type == NB_OPTION_SETTINGS ? "..." : "");
    }
    fputc('\n', out);
}

void nb_help_command(const struct nb_command *command, FILE *out)
{
    fputs("usage: ", out);
    print_usage(command, out);
    fprintf(out, "\n%s\n\n", command->description);
    for (int i = 0; command->options && command->options[i].name; i++) {
        const struct nb_option *option = &command->options[i];
        char left[64];
        snprintf(left, sizeof left, "--%s %s", option->name, option->value ? option->value : "");
        fprintf(out, "  %-22s %s\n", left, option->help);
    }
    fprintf(out, "\nexample: %s\n", command->example);
}

/* Text into roff: a backslash, and a dot or quote that begins a line, would be read as commands; dashes stay dashes. */
static void roff_text(const char *text, FILE *out)
{
    bool line_start = true;
    for (; *text; text++) {
        if (line_start && (*text == '.' || *text == '\''))
            fputs("\\&", out);
        if (*text == '\\')
            fputs("\\e", out);
        else if (*text == '-')
            fputs("\\-", out);
        else
            fputc(*text, out);
        line_start = *text == '\n';
    }
    fputc('\n', out);
}

static void roff_command(const struct nb_command *command, FILE *out)
{
    fprintf(out, ".SS nibble %s", command->name);
    if (command->argument)
        fprintf(out, command->argument_optional ? " [%s]" : " %s", command->argument);
    fprintf(out, command->second ? " [%s]\n" : "\n", command->second);
    roff_text(command->description, out);
    for (int i = 0; command->options && command->options[i].name; i++) {
        const struct nb_option *option = &command->options[i];
        fprintf(out, ".TP\n\\fB\\-\\-%s\\fR", option->name);
        if (option->value)
            fprintf(out, " \\fI%s\\fR", option->value);
        fputc('\n', out);
        roff_text(option->help, out);
    }
    fputs(".PP\n.nf\n", out);
    roff_text(command->example, out);
    fputs(".fi\n", out);
}

void nb_help_manual(FILE *out)
{
    fprintf(out, ".TH NIBBLE 1 \"\" \"nibble %s\" \"User Commands\"\n", NB_VERSION);
    fputs(".SH NAME\nnibble \\- fine\\-tune large language models in 4 bits\n"
          ".SH SYNOPSIS\n.B nibble\n\\fIVERB\\fR [\\fIARGUMENT\\fR] [\\fB\\-\\-option\\fR \\fIvalue\\fR] ...\n"
          ".SH DESCRIPTION\n",
          out);
    roff_text("nibble fine-tunes large language models in 4 bits (QLoRA). The base model's weights stay NF4 blocks with\n"
              "double-quantized scales; LoRA adapters train over them. It reads Hugging Face folders and GGUF files, JSONL data and a\n"
              "YAML file with Axolotl's keys, and writes adapters that PEFT loads unchanged.",
              out);
    fputs(".SH VERBS\n", out);
    for (size_t i = 0; nb_commands[i]; i++)
        roff_command(nb_commands[i], out);
    fputs(".SH CONFIGURATION\n", out);
    roff_text("The keys of the YAML file, and of --set key=value.", out);
    nb_config_man(out);
    fputs(".SH EXIT STATUS\n.TP\n0\ndone\n.TP\n1\nfailed\n.TP\n2\nwrong usage or configuration\n"
          ".TP\n130\ninterrupted, after saving\n",
          out);
}

/* The GPU that a run would take, or why none: both are answers here, not errors. */
static void print_gpu(FILE *out)
{
    struct nb_device_profile gpu;
    fprintf(out, "GPU support: %s\n", nb_cuda_backend_description(NULL));
    if (!nb_cuda_built())
        return;
    if (nb_cuda_probe(&(struct nb_cuda_options){0}, &gpu) != NB_OK) {
        fprintf(out, "this machine's GPU: none to use: %s\n", nb_status_message());
        return;
    }
    fprintf(out, "this machine's GPU: %s, compute capability %d.%d, %llu MiB, products by %s\n", gpu.name, gpu.compute_capability / 10,
            gpu.compute_capability % 10, (unsigned long long)(gpu.memory_bytes >> 20),
            gpu.cublaslt_version ? "cuBLASLt" : "nibble's own kernels (no cuBLASLt found)");
}

void nb_help_version(FILE *out)
{
    struct nb_device_profile profile;
    nb_cpu_profile(&(struct nb_cpu_options){0}, &profile);
    fprintf(out, "nibble %s\n", NB_VERSION);
    fprintf(out, "matrix products: %s\n", nb_cpu_backend_description());
    fprintf(out, "built for: %s\n", NB_CPU_OPTION);
    fprintf(out, "this machine: %s, %d threads, bf16 arithmetic: %s\n", profile.name, profile.multiprocessors,
            profile.bf16 ? "yes" : "no");
    print_gpu(out);
}
