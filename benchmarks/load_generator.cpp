// Many clients that stream answers from one server: a thread and a connection each, as little work as can be.
//
// load_generator HOST PORT CLIENTS SECONDS TOKENS [PROMPTS [FIRST]]
//
// Each client asks for a streamed completion of TOKENS tokens again and again, until the time is over; PROMPTS > 0 gives
// every request a prompt of its own, numbered from FIRST, and ends when so many are used up. Prints one JSON
// object: requests, tokens (events with a choice), errors, seconds, its own processor seconds, and times to first token.
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

using Clock = std::chrono::steady_clock;

static std::atomic<long> tokens{0}, answers{0}, errors{0}, next_prompt{0};
static std::mutex lock;
static std::vector<double> firsts;

static double since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

static int connected(const char* host, int port) {
    int line = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    sockaddr_in there{};
    there.sin_family = AF_INET;
    there.sin_port = htons(port);
    inet_pton(AF_INET, host, &there.sin_addr);
    if (connect(line, reinterpret_cast<sockaddr*>(&there), sizeof there) != 0) return -1;
    setsockopt(line, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    timeval wait{300, 0};
    setsockopt(line, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait);
    return line;
}

// One streamed answer over an open connection; false where it did not come whole.
static bool ask(int line, const std::string& body, std::vector<double>& mine) {
    std::string request = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: " +
                          std::to_string(body.size()) + "\r\n\r\n" + body;
    auto start = Clock::now();
    if (send(line, request.data(), request.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(request.size())) return false;
    char piece[16384];
    std::string tail;  // what was read and not looked at, at most a partial mark
    bool begun = false, ok = false;
    for (;;) {
        ssize_t got = recv(line, piece, sizeof piece, 0);
        if (got <= 0) return false;
        tail.append(piece, got);
        if (!ok) {
            if (tail.size() < 12) continue;
            if (tail.compare(9, 3, "200") != 0) return false;
            ok = true;
        }
        size_t at = 0, found;
        while ((found = tail.find("\"choices\"", at)) != std::string::npos) {
            if (!begun) mine.push_back(since(start));
            begun = true;
            ++tokens;
            at = found + 9;
        }
        if (tail.find("[DONE]", at) != std::string::npos) {  // then the end of the chunks
            while (tail.find("\r\n0\r\n\r\n", 0) == std::string::npos) {
                got = recv(line, piece, sizeof piece, 0);
                if (got <= 0) return false;
                tail.append(piece, got);
            }
            return true;
        }
        tail.erase(0, std::max(at, tail.size() > 16 ? tail.size() - 16 : 0));
    }
}

int main(int count, char** given) {
    if (count < 6 || count > 8) return 2;
    const char* host = given[1];
    int port = atoi(given[2]), clients = atoi(given[3]), length = atoi(given[5]);
    double seconds = atof(given[4]);
    long prompts = count > 6 ? atol(given[6]) : 0;
    next_prompt = count > 7 ? atol(given[7]) : 0;
    prompts += prompts > 0 ? next_prompt.load() : 0;
    static const char* openings[] = {"Once upon a time, in a small village by the sea,", "The capital of France is",
                                     "To make a good soup, begin with", "A prime number is",
                                     "The mole is a small animal that", "Dear Sir or Madam,"};
    auto start = Clock::now();
    std::vector<std::thread> all;
    for (int number = 0; number < clients; ++number)
        all.emplace_back([=] {
            std::vector<double> mine;
            int line = connected(host, port);
            for (long turn = number; line >= 0 && since(start) < seconds; ++turn) {
                std::string prompt = openings[turn % 6];
                if (prompts > 0) {
                    long mine_now = next_prompt++;
                    if (mine_now >= prompts) break;
                    prompt = "Number " + std::to_string(mine_now * 7919 % 1000003) + ": " + prompt + " Then " +
                             std::to_string(mine_now) + " moles met, and";
                }
                std::string body = "{\"prompt\":\"" + prompt + "\",\"max_tokens\":" + std::to_string(length) +
                                   ",\"stream\":true,\"ignore_eos\":true,\"temperature\":0}";
                if (ask(line, body, mine)) {
                    ++answers;
                } else {
                    ++errors;
                    close(line);
                    line = connected(host, port);
                }
            }
            if (line < 0) ++errors;
            else close(line);
            std::lock_guard<std::mutex> hold(lock);
            firsts.insert(firsts.end(), mine.begin(), mine.end());
        });
    for (auto& one : all) one.join();
    double took = since(start);
    rusage used{};
    getrusage(RUSAGE_SELF, &used);
    double cpu = used.ru_utime.tv_sec + used.ru_stime.tv_sec + 1e-6 * (used.ru_utime.tv_usec + used.ru_stime.tv_usec);
    std::sort(firsts.begin(), firsts.end());
    double half = firsts.empty() ? 0 : firsts[firsts.size() / 2];
    double most = firsts.empty() ? 0 : firsts[static_cast<size_t>(0.95 * (firsts.size() - 1))];
    printf("{\"answers\": %ld, \"tokens\": %ld, \"errors\": %ld, \"seconds\": %.3f, \"cpu\": %.3f, \"first\": %.4f, \"first95\": %.4f}\n",
           answers.load(), tokens.load(), errors.load(), took, cpu, half, most);
}
