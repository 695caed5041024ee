// The run-time compiler: the system's C++ compiler makes a shared object of a source, which stands for its machine code.
// What was compiled once is kept in `DARKROOM_EMULATOR_CACHE`, or in a folder of the system's temporary ones.
#include "report.h"
#include "status.h"
#include <errno.h>
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <regex>
#include <sstream>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <string>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

// The headers that kernels are compiled with lie in this library itself (`build` makes these).
extern "C" {
extern const char device_h[], device_h_end[], device_types_h[], device_types_h_end[], half_h[], half_h_end[];
}

namespace {

enum Result : int {
    NVRTC_SUCCESS = 0,
    NVRTC_ERROR_INVALID_INPUT = 3,
    NVRTC_ERROR_COMPILATION = 6,
    NVRTC_ERROR_INTERNAL_ERROR = 11,
};

namespace fs = std::filesystem;

struct Program {
    std::string source, log, object;
};

const std::vector<std::pair<const char *, std::string>> &headers() {
    static const std::vector<std::pair<const char *, std::string>> headers = {
        {"device.h", {device_h, device_h_end}},
        {"device_types.h", {device_types_h, device_types_h_end}},
        {"half.h", {half_h, half_h_end}},
    };
    return headers;
}

uint64_t hash(uint64_t from, const std::string &text) {
    for (unsigned char c : text) from = (from ^ c) * 0x100000001b3;
    return from;
}

uint64_t hash_of_headers() {
    uint64_t h = 0xcbf29ce484222325;
    for (auto &[name, text] : headers()) h = hash(h, text);
    return h;
}

const char *compiler() {
    const char *named = getenv("CXX");
    return named && *named ? named : "g++";
}

// Alignment and bounds are checked as the card and nobody checks them; other oddities of C++ are as in CUDA.
const std::vector<std::string> FLAGS = {
    "-std=c++17", "-O2", "-w", "-fPIC", "-fvisibility=hidden", "-fno-strict-aliasing", "-fwrapv", "-fno-gnu-unique",
    "-ffp-contract=off", "-fno-math-errno", "-fsanitize=alignment,bounds", "-fno-sanitize-recover=all",
    "-DDARKROOM_EMULATED",
};

// Runs a program without a shell; what it says on standard error.
bool run(const std::vector<std::string> &command, std::string &said) {
    int pipes[2];
    if (pipe2(pipes, O_CLOEXEC)) return false;
    pid_t child = fork();
    if (child == 0) {
        std::vector<char *> arguments;
        for (auto &word : command) arguments.push_back((char *)word.c_str());
        arguments.push_back(nullptr);
        dup2(pipes[1], 2);
        unsetenv("LD_LIBRARY_PATH");
        execvp(arguments[0], arguments.data());
        dprintf(2, "%s cannot be run: %s", arguments[0], strerror(errno));
        _exit(127);
    }
    close(pipes[1]);
    if (child < 0) {
        close(pipes[0]);
        said += "no process for the compiler";
        return false;
    }
    char bytes[4096];
    for (ssize_t n; (n = read(pipes[0], bytes, sizeof bytes)) > 0;) said.append(bytes, n);
    close(pipes[0]);
    int status = 0;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {}
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

std::string read_file(const fs::path &path) {
    std::ifstream file(path, std::ios::binary);
    std::stringstream text;
    text << file.rdbuf();
    return text.str();
}

bool write_file(const fs::path &path, const std::string &text) {
    std::ofstream file(path, std::ios::binary);
    file << text;
    return file.flush().good();
}

// An entry for each kernel, found by the mark that `KERNEL` leaves.
std::string entries(const std::string &preprocessed) {
    static const std::regex kernel(R"(\[\[\s*darkroom::kernel\s*\(([^;{}]*?)\)\s*\]\]\s*void\s+(\w+)\s*\()");
    std::string text = "\nextern \"C\" __attribute__((visibility(\"default\"))) void *darkroom_thread_locals() "
                       "{ static thread_local char one; return &one; }\n";
    for (std::sregex_iterator i(preprocessed.begin(), preprocessed.end(), kernel), end; i != end; ++i)
        text += "extern \"C\" __attribute__((visibility(\"default\"))) const emulated::Entry darkroom_entry_" + (*i)[2].str() +
                " = emulated::entry<&" + (*i)[2].str() + ">(" + (*i)[1].str() + ");\n";
    return text;
}

fs::path cache() {
    const char *named = getenv("DARKROOM_EMULATOR_CACHE");
    return named && *named ? fs::path(named) : fs::temp_directory_path() / ("darkroom-emulator-" + std::to_string(getuid()));
}

Result compile(Program &program, const std::vector<std::string> &defines) {
    uint64_t key = hash(hash_of_headers(), program.source);
    for (auto &word : defines) key = hash(key, word + "\n");
    for (auto &word : FLAGS) key = hash(key, word + "\n");
    key = hash(key, compiler());
    char name[32];
    snprintf(name, sizeof name, "%016llx.so", (unsigned long long)key);
    std::error_code error;
    fs::create_directories(cache(), error);
    fs::path kept = cache() / name;
    program.object = read_file(kept);
    if (!program.object.empty()) return NVRTC_SUCCESS;

    std::string pattern = (fs::temp_directory_path() / "darkroom-kernel-XXXXXX").string();
    if (!mkdtemp(pattern.data())) return NVRTC_ERROR_INTERNAL_ERROR;
    fs::path folder = pattern;
    auto in = [&](const char *file) { return (folder / file).string(); };
    for (auto &[header, text] : headers()) write_file(folder / header, text);
    write_file(folder / "kernel.cpp", program.source);
    std::vector<std::string> preprocess = {compiler(), "-E", "-I" + folder.string(), "-o", in("kernel.ii"), in("kernel.cpp")};
    preprocess.insert(preprocess.end(), FLAGS.begin(), FLAGS.end());
    preprocess.insert(preprocess.end(), defines.begin(), defines.end());
    bool made = run(preprocess, program.log);
    if (made) {
        std::string text = read_file(folder / "kernel.ii");
        write_file(folder / "kernel.ii", text + entries(text));
        std::vector<std::string> translate = {compiler(), "-c", "-o", in("kernel.o"), in("kernel.ii")};
        translate.insert(translate.end(), FLAGS.begin(), FLAGS.end());
        made = run(translate, program.log) &&
               run({compiler(), "-shared", "-o", in("kernel.so"), in("kernel.o"), "-lm"}, program.log);
    }
    if (made) {
        program.object = read_file(folder / "kernel.so");
        // Renamed when whole: other processes look for it at the same time.
        fs::path unfinished = kept.string() + "." + std::to_string(getpid()) + "-" + folder.filename().string();
        if (write_file(unfinished, program.object)) fs::rename(unfinished, kept, error);
    }
    fs::remove_all(folder, error);
    return made ? NVRTC_SUCCESS : NVRTC_ERROR_COMPILATION;
}

} // namespace

EXPORTED Result nvrtcVersion(int *major, int *minor) {
    // Callers keep machine code by version: another one for each state of the headers, and none of a real compiler's.
    *major = 13;
    *minor = 1000000 + (int)(hash_of_headers() % 100000000);
    return NVRTC_SUCCESS;
}
EXPORTED const char *nvrtcGetErrorString(Result result) {
    switch (result) {
    case NVRTC_SUCCESS: return "NVRTC_SUCCESS";
    case NVRTC_ERROR_INVALID_INPUT: return "NVRTC_ERROR_INVALID_INPUT";
    case NVRTC_ERROR_COMPILATION: return "NVRTC_ERROR_COMPILATION";
    default: return "NVRTC_ERROR_INTERNAL_ERROR";
    }
}
EXPORTED Result nvrtcCreateProgram(Program **program, const char *source, const char *, int headers, const char *const *,
                                 const char *const *) {
    if (!source || headers != 0) return NVRTC_ERROR_INVALID_INPUT;
    *program = new Program{source, "", ""};
    return NVRTC_SUCCESS;
}
EXPORTED Result nvrtcDestroyProgram(Program **program) {
    delete *program;
    *program = nullptr;
    return NVRTC_SUCCESS;
}
EXPORTED Result nvrtcCompileProgram(Program *program, int count, const char *const *options) {
    std::vector<std::string> defines;
    for (int i = 0; i < count; i++)
        if (strncmp(options[i], "-D", 2) == 0) defines.push_back(options[i]);
    return compile(*program, defines);
}
EXPORTED Result nvrtcGetProgramLogSize(Program *program, size_t *size) {
    return *size = program->log.size() + 1, NVRTC_SUCCESS;
}
EXPORTED Result nvrtcGetProgramLog(Program *program, char *log) {
    memcpy(log, program->log.c_str(), program->log.size() + 1);
    return NVRTC_SUCCESS;
}
EXPORTED Result nvrtcGetCUBINSize(Program *program, size_t *size) { return *size = program->object.size(), NVRTC_SUCCESS; }
EXPORTED Result nvrtcGetCUBIN(Program *program, char *object) {
    memcpy(object, program->object.data(), program->object.size());
    return NVRTC_SUCCESS;
}
EXPORTED Result nvrtcGetPTXSize(Program *program, size_t *size) { return nvrtcGetCUBINSize(program, size); }
EXPORTED Result nvrtcGetPTX(Program *program, char *object) { return nvrtcGetCUBIN(program, object); }
